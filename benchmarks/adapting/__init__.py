"""What ways to adapt a small trained model are worth on held-out text: adapters of equal size, optimizers, a library.

    python -m benchmarks.adapting run --out FOLDER --input models=FOLDER [--input gsm8k=FILE] [--at-once N] [--until S]
    python -m benchmarks.adapting library --out FOLDER --input models=FOLDER …
    python -m benchmarks.adapting write FOLDER

`tasks` has the data, `ways` who adapts, `search` which runs are wanted next, `runs` does them side by side, `rows`
makes results of them. Runs that are finished lie in FOLDER/runs.json, and the same command goes on from there.
`library` has the modules that `run --modules` trained found by examples (`finding`) and put to work in domains that
none of them has learnt (`composing`).
"""
