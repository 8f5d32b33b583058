"""Write the results of a verified grid, and draw them:

    hayless plan verify benchmarks/verified/h100
    python benchmarks/plan.py benchmarks/verified/h100

The folder keeps what was measured, and predictions are made anew. A run on a CPU also times `hayless plan` itself, by
the time of its process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hayless.core import atomic
from hayless.core.errors import HaylessError
from hayless.core.measurement import Goal, Machine
from hayless.core.units import format_bytes
from hayless.measure.speed import Spread
from hayless.plan import grid, verified, verify
from hayless.plan.memory import MARGIN
from hayless.plan.picture import draw_verified
from hayless.study.bench.results import Row, write

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks/results", ROOT / "docs/plan-verified.png"
PRESET = ("plan", "--preset", "llama-7b", "--batch", "2", "--seq", "2048")
STARTS = 15
OURS, ACCELERATE, TRACKER = "hayless plan", "accelerate estimate-memory", "torch's MemTracker"
_OTHERS = {"accelerate": ACCELERATE, "MemTracker": TRACKER}


def main(arguments: list[str] | None = None) -> int:
    """Read a run, compare, write and draw; the exit code of what its folder does not allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where hayless plan verify kept finished cases")
    chosen = parser.parse_args(arguments)
    try:
        content = verify.read(chosen.folder)
    except HaylessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = verified.lines(content, grid.cases(content["kind"], quick=False))
    machine = Machine.model_validate(content["machine"])
    if content["kind"] == "cuda":
        write(RESULTS / "plan.json", "plan", rows(found), on=machine)
        atomic.write_bytes(PICTURE, draw_verified(found, "png"))
    else:
        write(RESULTS / "plan_cpu.json", "plan_cpu", [*resident(found), start()], on=machine)
    return 0


def rows(found: Sequence[verified.Line]) -> list[Row]:
    """On a GPU: the goals, and every case."""
    spreads = verified.summary(found)
    training, decoding = spreads["peak of training"], spreads["peak of decoding"]
    peaks = f"peak memory while training ({training.count} runs, max_memory_allocated of fresh processes)"
    content = [
        Row.single(peaks, OURS, "compared", "runs", training.count, Goal(op=">=", value=40)),
        Row.single(peaks, OURS, "median error", "%", 100 * training.median, Goal(op="<=", value=1.5)),
        Row.single(peaks, OURS, "worst error", "%", 100 * training.worst, Goal(op="<=", value=4)),
        Row.single(
            peaks,
            OURS,
            "largest under-prediction",
            "%",
            -100 * min(0, training.lowest),
            Goal(op="<=", value=100 * MARGIN),
        ),
    ]
    for name, contender in _OTHERS.items():
        other = verified.spread_of_other([line for line in found if line.trains], name)
        if other:
            note = f"{other.count} of the runs"
            content += [
                Row.single(peaks, contender, metric, "%", 100 * value, note=note)
                for metric, value in (("median error", other.median), ("worst error", other.worst))
            ]
    work = f"decoding ({decoding.count} runs, bf16 and weights of 8 and 4 bits)"
    content.append(
        Row.single(work, OURS, "peak memory: worst error", "%", 100 * decoding.worst, Goal(op="<=", value=3))
    )
    content += _times(spreads, work, "a token", 8)
    content += _times(spreads, "training: time of an update, launches from Python included", "an update", 10)
    for trains, work in ((True, "peak memory while training"), (False, "peak memory while decoding")):
        content += [row for line in found if line.trains == trains for row in _case(work, line)]
    for trains, work in ((True, "time of an update"), (False, "time of a token")):
        content += [row for line in found if line.trains == trains for row in _time(work, line)]
    return content


def resident(found: Sequence[verified.Line]) -> list[Row]:
    """On a CPU: resident memory, of which a margin and an allowance are known."""
    work = "resident memory of training and decoding on a CPU, freed memory handed back at once"
    peaks = [line.peak for line in found if line.peak]
    beyond = [max(0.0, peak.measured - (1 + MARGIN) * peak.predicted) for peak in peaks]
    allowed = Goal(op="<=", value=verified.RESIDENT_BYTES)
    content = [Row.single(work, OURS, "most beyond the margin", "B", max(beyond), allowed)]
    return content + [row for line in found for row in _case(work, line)]


def start() -> Row:
    """How long `hayless plan` takes on a preset, all its threads together."""
    work = "hayless " + " ".join(PRESET)
    times = sorted(_process_seconds([sys.executable, "-m", "hayless", *PRESET]) for _ in range(STARTS))
    low, high = times[STARTS // 5], times[-1 - STARTS // 5]
    spread = Spread(statistics.median(times), low, high)
    return Row(work, OURS, "time of the process", "s", spread, Goal(op="<=", value=0.25), "user and system time")


def _process_seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def _times(spreads: dict[str, verified.Spread], work: str, piece: str, percent: float) -> list[Row]:
    """Errors of times: where constants were fitted, and with the goal where they were not."""
    content = []
    for half, goal in (("the others", Goal(op="<=", value=percent)), ("fitted", None)):
        spread = spreads.get(f"time of {piece}, {half}")
        if spread:
            note = f"{spread.count} runs, worst {spread.worst:.0%}"
            content.append(
                Row.single(work, OURS, f"time of {piece}, {half}: median error", "%", 100 * spread.median, goal, note)
            )
    return content


def _case(work: str, line: verified.Line) -> list[Row]:
    """A case's peak, and in words beside it what was said of it and what else the device held."""
    if line.peak is None:
        return [Row(work, line.case.name, "peak", "B", None, reason=line.why)]
    beside = [f"predicted {format_bytes(line.peak.predicted)}, {line.peak.error:+.2%}"]
    beside += [f"{name} {format_bytes(size)}" for name, size in line.others.items()]
    beside += [f"reserved {format_bytes(line.reserved_bytes)}"] if line.reserved_bytes else []
    beside += [f"context {format_bytes(line.context_bytes)}"] if line.context_bytes else []
    return [Row.single(work, line.case.name, f"peak ({'; '.join(beside)})", "B", line.peak.measured)]


def _time(work: str, line: verified.Line) -> list[Row]:
    if line.time is None:
        return []
    fitted = "; constants were fitted to it" if line.fitted else ""
    beside = f"predicted {1e3 * line.time.predicted:.4g} ms, {line.time.error:+.1%}{fitted}"
    return [Row.single(work, line.case.name, f"time ({beside})", "ms", 1e3 * line.time.measured)]


if __name__ == "__main__":
    sys.exit(main())
