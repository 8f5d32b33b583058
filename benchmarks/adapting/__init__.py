"""What ways to adapt a small trained model are worth on held-out text: adapters of equal size, and optimizers.

    python -m benchmarks.adapting run --out FOLDER --input models=FOLDER [--input gsm8k=FILE] [--at-once N] [--until S]
    python -m benchmarks.adapting write FOLDER...

`tasks` has the data, `ways` who adapts, `search` which runs are wanted next, `runs` does them side by side, `rows`
makes results of them. Runs that are finished lie in FOLDER/runs.json, and the same command goes on from there.
"""
