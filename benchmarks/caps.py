"""Run the recommender's first recipe under a hard cap of a GPU's memory, for five sizes of models and five budgets, and
write what came of it; about two minutes on a card of 80 GB:

    python benchmarks/caps.py [--out FOLDER]

Models have random weights. The cap is the budget less what is planned for the CUDA context.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hayless.core.devices import Device, find
from hayless.core.measurement import Goal
from hayless.core.units import format_bytes
from hayless.measure.speed import Spread
from hayless.plan import caps
from hayless.plan.memory import CONTEXT_BYTES, SLACK
from hayless.plan.presets import config_of
from hayless.study.bench.results import Row, write

RESULTS = Path(__file__).resolve().parent / "results"
WHO = "hayless plan --memory, first recipe"
ENOUGH = 0.9
"""The share of a budget that a recipe is to use."""


def main(arguments: list[str] | None = None) -> int:
    """Ask, run and write; 1 where there is no GPU, which the rows then say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="plan_caps", help="of the file of results")
    parser.add_argument("--at-once", type=int, default=5, help="processes side by side, as far as memory allows")
    parser.add_argument("--until", type=float, help="begin no cell after so many seconds")
    chosen = parser.parse_args(arguments)
    target = chosen.out / f"{chosen.name}.json"
    if not torch.cuda.is_available():
        write(target, chosen.name, rows([], "there is no CUDA device"))
        return 1
    start = time.monotonic()
    asked = cells(find(torch.cuda.get_device_name()))
    taken = time.monotonic() - start
    say = partial(print, file=sys.stderr, flush=True)
    say(f"{len(asked)} cells asked for in {taken:.0f} s")
    until = None if chosen.until is None else chosen.until - taken
    found = caps.run(asked, "cuda:0", torch.cuda.mem_get_info()[0], at_once=chosen.at_once, until=until, say=say)
    write(target, chosen.name, rows(found))
    return 0


def cells(on: Device) -> list[caps.Cell]:
    """Every cell, the sizes side by side."""
    shapes = [{size: config_of(preset)} for size, preset in caps.SHAPES.items()]
    with ProcessPoolExecutor(len(shapes), mp_context=get_context("spawn")) as pool:
        return [cell for part in pool.map(partial(_cells, on), shapes) for cell in part]


def rows(found: Sequence[caps.Capped], reason: str = "") -> list[Row]:
    """The three goals, and a row for each cell; with a `reason` why there are no figures."""
    budgets = ", ".join(f"{budget / 1e9:g}" for budget in caps.BUDGETS)
    goal = partial(_row, f"{', '.join(caps.SHAPES)} in {budgets} GB", reason=reason)
    done = [each for each in found if not each.failed]
    advised = [each for each in done if each.cell.advised]
    used = [each.used_share for each in advised if each.used_share is not None]
    cap = (
        f"of {len(advised)}; hard caps of the budget less {format_bytes(CONTEXT_BYTES)} for the CUDA context,"
        f" {SLACK:.0%} planned as slack, allocator: {os.environ.get('PYTORCH_ALLOC_CONF', 'PyTorch’s default')}"
    )
    if len(done) < len(found):
        cap += f"; {len(found) - len(done)} more could not be run"
    share = (
        f"{sum(one >= ENOUGH for one in used)} of {len(used)} use {ENOUGH:.0%} and more: tensors in use at the peak and"
        " the context, as a share of the budget"
    )
    refused = f"of {len(done) - len(advised)} for which nothing is recommended: what needs least was run all the same"
    wrong = sum(each.wrongly_refused for each in done)
    out = sum(each.ran_out for each in done)
    return [
        goal("ran out", "cells", None if reason else out, cap, Goal(op="<=", value=0)),
        goal("least budget used", "", min(used, default=None), share, Goal(op=">=", value=ENOUGH)),
        goal("refused, but fits", "cells", None if reason else wrong, refused, Goal(op="<=", value=1)),
        *map(_cell, found),
    ]


def _cell(found: caps.Capped) -> Row:
    choice, answer = found.cell.choice, found.found
    note = f"{'recommended' if found.cell.advised else 'refused'}: {choice.name}"
    note += f", {choice.micro_batch} × {choice.sequence:,} tokens at once, {format_bytes(choice.needed_bytes)} planned"
    if answer:
        held = (answer["peak_bytes"], answer["reserved_bytes"] or 0)
        note += f"; at the peak {format_bytes(held[0])} in use, {format_bytes(held[1])} reserved, without the context"
    return _row(found.cell.name, "budget used", "", found.used_share, note, reason=found.failed or answer["reason"])


def _row(
    work: str, metric: str, unit: str, value: float | None, note: str, goal: Goal | None = None, reason: str = ""
) -> Row:
    spread = None if value is None else Spread.single(value)
    better: Any = "lower" if goal and goal.op == "<=" else "higher"
    said = "" if spread else reason.partition("\n")[0] or "no cell ran through"
    # A goal without a figure has nothing to be said of it but why.
    return Row(work, WHO, metric, unit, spread, goal, note if spread or not goal else "", better, said)


def _cells(on: Device, shapes: dict[str, dict[str, Any]]) -> list[caps.Cell]:
    return caps.cells(on, shapes, caps.BUDGETS)


if __name__ == "__main__":
    sys.exit(main())
