"""Run benchmarks and write their results: `make bench SPEC=train_cpu`, or

    python benchmarks/run.py SPEC... [--out FOLDER] [--input NAME=PATH]...

A spec is a file of `benchmarks/specs`. Some works need files that no clone has: `--input` says where they are, and a
work without its input has rows that say what to give. What compilers make is kept in `benchmarks/.cache`.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPECS, RESULTS, CACHE = HERE / "specs", HERE / "results", HERE / ".cache"


def main(arguments: list[str] | None = None) -> int:
    """Run each spec that is named; 1 where one has no figure at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="+", help=", ".join(sorted(path.stem for path in SPECS.glob("*.py"))))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=PATH")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))

    from hayless.core.errors import HaylessError
    from hayless.study.bench import inputs, results, runner, spec

    empty = False
    try:
        for text in chosen.input:
            inputs.give(text)
        for name in chosen.spec:
            path = SPECS / f"{name.replace('-', '_')}.py"
            found = spec.load(path)
            keep = partial(results.write, chosen.out / f"{found.name}.json", found.name)
            rows = runner.run(found, path, say=lambda line: print(line, file=sys.stderr, flush=True), keep=keep)
            empty |= all(row.spread is None for row in rows)
    except HaylessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return int(empty)


if __name__ == "__main__":
    sys.exit(main())
