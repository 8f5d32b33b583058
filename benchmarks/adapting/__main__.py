"""The commands: `run` and `library` measure, `write` makes results of it."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.adapting import library
from benchmarks.adapting.rows import ADAPTERS, OPTIMIZERS, Results
from benchmarks.adapting.runs import FILE, Kept, Place, all_of, pack
from benchmarks.adapting.tasks import MODULES, TASKS
from benchmarks.adapting.ways import MODULE, UNTRAINED

from benchmarks import adapting
from hayless.core.errors import HaylessError
from hayless.study.bench import inputs
from hayless.study.bench.results import write

RESULTS = Path(__file__).resolve().parents[1] / "results"
_WAYS = list(dict.fromkeys((UNTRAINED, *OPTIMIZERS, *ADAPTERS)))
_say = partial(print, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure or write; 1 where something is left for another time."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        "adapting", description=adapting.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="do the runs that are not done yet")
    run.add_argument("--steps", type=int, default=150, help="updates of a run")
    run.add_argument("--task", action="append", choices=[task.name for task in TASKS], help="only these tasks")
    run.add_argument("--way", action="append", choices=_WAYS, help="only these ways")
    run.add_argument("--modules", action="store_true", help="train the modules of a library first")
    shelf = verbs.add_parser("library", help="find and compose the modules that run --modules trained")
    for one in (run, shelf):
        one.add_argument("--out", type=Path, required=True, help="the folder of what is measured, and of archives")
        one.add_argument("--data", type=Path, help="where data and modules are made; OUT/data if not given")
        one.add_argument("--input", action="append", default=[], metavar="NAME=PATH", help="models, gsm8k and so on")
        one.add_argument("--model", default="target", help="which of the models: target or draft")
        one.add_argument("--device", default="cpu", help="cpu or cuda")
        one.add_argument("--at-once", type=int, default=1, help="processes side by side")
        one.add_argument("--until", type=float, default=float("inf"), help="begin nothing after so many seconds")
    written = verbs.add_parser("write", help="write the results of runs that are done")
    written.add_argument("folder", type=Path)
    written.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    try:
        return _write(chosen) if chosen.verb == "write" else _measure(chosen, start)
    except HaylessError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _measure(chosen: argparse.Namespace, start: float) -> int:
    until = start + chosen.until
    if chosen.verb == "library":
        return 0 if library.measure(_place(chosen, 0), at_once=chosen.at_once, until=until, say=_say) else 1
    place = _place(chosen, chosen.steps)
    kept = Kept(place.folder, place)
    pairs = [(task.name, MODULE) for task in MODULES] if chosen.modules else []
    pairs += [(name, way) for name in chosen.task or [task.name for task in TASKS] for way in chosen.way or _WAYS]
    done = all_of(pairs, place, kept, at_once=chosen.at_once, until=until, say=_say)
    if chosen.modules:
        pack(place)
    return 0 if done else 1


def _place(chosen: argparse.Namespace, steps: int) -> Place:
    for text in chosen.input:
        inputs.give(text)
    models = inputs.given("models", "a folder with two trained Llamas that share a tokenizer, target/ and draft/")
    data = chosen.data or chosen.out / "data"
    return Place((models / chosen.model).resolve(), chosen.out.resolve(), data.resolve(), chosen.device, steps)


def _write(chosen: argparse.Namespace) -> int:
    made = []
    if (chosen.folder / library.FILE).exists():
        made.append(("adapters_modules", *library.results(chosen.folder)))
    if (chosen.folder / FILE).exists() or not made:
        kept = Kept(chosen.folder)
        found = Results(kept)
        made.append(("adapters_quality", found.adapters(), kept.machine))
        made.append(("memory_quality", found.optimizers(), kept.machine))
    for name, rows, on in made:
        write(chosen.out / f"{name}.json", name, rows, on=on)
    return 0


if __name__ == "__main__":
    sys.exit(main())
