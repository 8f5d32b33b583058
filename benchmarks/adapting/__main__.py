"""The commands: `run` does what is not done yet, `write` makes results of it."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.adapting.rows import ADAPTERS, OPTIMIZERS, Results
from benchmarks.adapting.runs import Kept, Place, all_of, pack
from benchmarks.adapting.tasks import MODULES, TASKS
from benchmarks.adapting.ways import MODULE, UNTRAINED

from benchmarks import adapting
from hayless.core.errors import HaylessError
from hayless.study.bench import inputs
from hayless.study.bench.results import write

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run or write; 1 where runs are left for another time."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        "adapting", description=adapting.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="do the runs that are not done yet")
    run.add_argument("--out", type=Path, required=True, help="the folder of runs.json and archives of modules")
    run.add_argument("--data", type=Path, help="where data and modules are made; OUT/data if not given")
    run.add_argument(
        "--input", action="append", default=[], metavar="NAME=PATH", help="models, gsm8k, sst2, shakespeare"
    )
    run.add_argument("--model", default="target", help="which of the models: target or draft")
    run.add_argument("--device", default="cpu", help="cpu or cuda")
    run.add_argument("--steps", type=int, default=150, help="updates of a run")
    run.add_argument("--at-once", type=int, default=1, help="processes side by side")
    run.add_argument("--until", type=float, default=float("inf"), help="begin no run after so many seconds")
    run.add_argument("--task", action="append", help="only these tasks; may be given several times")
    run.add_argument("--way", action="append", help="only these ways; may be given several times")
    run.add_argument("--modules", action="store_true", help="train the modules of a library first")
    written = verbs.add_parser("write", help="write the results of runs that are done")
    written.add_argument("folder", type=Path)
    written.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen, start) if chosen.verb == "run" else _write(chosen)
    except HaylessError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _run(chosen: argparse.Namespace, start: float) -> int:
    for text in chosen.input:
        inputs.give(text)
    models = inputs.given("models", "a folder with two trained Llamas that share a tokenizer, target/ and draft/")
    data = chosen.data or chosen.out / "data"
    place = Place((models / chosen.model).resolve(), chosen.out.resolve(), data.resolve(), chosen.device, chosen.steps)
    kept = Kept(place.folder, place)
    names = chosen.task or [task.name for task in TASKS]
    ways = chosen.way or list(dict.fromkeys((UNTRAINED, *OPTIMIZERS, *ADAPTERS)))
    say = partial(print, file=sys.stderr, flush=True)
    pairs = [(task.name, MODULE) for task in MODULES] if chosen.modules else []
    pairs += [(name, way) for name in names for way in ways]
    done = all_of(pairs, place, kept, at_once=chosen.at_once, until=start + chosen.until, say=say)
    if chosen.modules:
        pack(place)
    return 0 if done else 1


def _write(chosen: argparse.Namespace) -> int:
    kept = Kept(chosen.folder)
    found = Results(kept)
    for name, rows in (("adapters_quality", found.adapters()), ("memory_quality", found.optimizers())):
        write(chosen.out / f"{name}.json", name, rows, on=kept.machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
