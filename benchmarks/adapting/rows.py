"""Runs as rows of results: what each way leaves in bits a byte, and how far it is from another on the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.adapting.runs import BATCH, LENGTH, Kept
from benchmarks.adapting.search import SEEDS, tried_rates
from benchmarks.adapting.tasks import TASKS, Task
from benchmarks.adapting.ways import FULL, LOMO, LORA, UNTRAINED

from hayless.core.measurement import Goal
from hayless.core.units import format_count
from hayless.measure import interval
from hayless.measure.interval import Interval
from hayless.measure.speed import Spread
from hayless.study.bench.results import Row

BITS, ACCURACY = "bits per byte", "right answers"
ADAPTERS = (FULL, LORA, "lora+", "dora", "pissa", "lora_moe", "bottleneck", "prefix", "prompt", "ia3", "bitfit")
OPTIMIZERS = (FULL, "full, sgd", LOMO, "full, adalomo", LORA)
_NONE = Goal(op="<=", value=0)


@dataclass(frozen=True, slots=True)
class Result:
    """A way at a task with all its seeds; `sizes` are the bytes of the task's held-out documents."""

    runs: Sequence[dict[str, Any]]
    sizes: Sequence[float]

    @property
    def bits(self) -> Spread:
        """Bits a byte over the seeds."""
        return Spread.of([run["bits"] for run in self.runs])

    @property
    def documents(self) -> list[float]:
        """Bits of each held-out document, the mean of the seeds."""
        each = zip(*(run["nats"] for run in self.runs), strict=True)
        return [sum(nats) / len(nats) / math.log(2) for nats in each]

    def beyond(self, other: Result) -> Interval:
        """Bits a byte more than another's on the same documents, with the paired 95% interval."""
        return interval.difference((self.documents, self.sizes), (other.documents, self.sizes))


class Results:
    """What the runs of a folder come to."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self._found = {
            (task.name, way): self._of(task.name, way)
            for task in TASKS
            for way in dict.fromkeys((UNTRAINED, *ADAPTERS, *OPTIMIZERS))
        }

    def of(self, task: str, way: str) -> Result | str:
        """The result, or why there is none."""
        return self._found[task, way]

    def adapters(self) -> list[Row]:
        """Adapters of equal size beside full training."""
        return [row for task in TASKS for row in self._task(task, ADAPTERS, FULL)]

    def optimizers(self) -> list[Row]:
        """Optimizers beside LoRA, by task and on the average."""
        return [row for task in TASKS for row in self._task(task, OPTIMIZERS, LORA)] + list(self._mean())

    def _of(self, task: str, way: str) -> Result | str:
        rows = [row for row in self.kept.rows if (row["task"], row["way"]) == (task, way)]
        seeds = SEEDS[:1] if way == UNTRAINED else SEEDS
        done = [row for row in rows if row["seed"] in seeds and "failed" not in row]
        if len(done) == len(seeds):
            return Result(done, [float(size) for _, size in self.kept.held_out[task]])
        failed = [row["failed"] for row in rows if "failed" in row]
        return failed[0] if failed and len(failed) == len(rows) else "there was no time for it"

    def _task(self, task: Task, contenders: Sequence[str], against: str) -> Iterator[Row]:
        work = self._work(task.words)
        if task.name in self.kept.missing:
            yield Row(work, against, BITS, "bits/byte", None, reason=self.kept.missing[task.name])
            return
        beyond = f"beyond {against}, and its 95% interval"
        other = self.of(task.name, against)
        for way in (UNTRAINED, *contenders):
            found = self.of(task.name, way)
            if isinstance(found, str):
                yield Row(work, way, BITS, "bits/byte", None, reason=found)
                continue
            yield Row(work, way, BITS, "bits/byte", found.bits, note=self._note(task.name, way, found))
            if task.choice:
                shares = Spread.of([100 * run["right"] for run in found.runs])
                yield Row(work, way, ACCURACY, "%", shares, better="higher")
            if isinstance(other, Result) and way not in (UNTRAINED, against):
                ends = found.beyond(other)
                yield Row(work, way, beyond, "bits/byte", _interval(ends))
                if (way, against) == (LORA, FULL):
                    yield Row.single(work, way, f"low end beyond {against}", "bits/byte", ends.low or 0.0, _NONE)

    def _mean(self) -> Iterator[Row]:
        """The mean over tasks of what each is beyond LoRA, all documents drawn together."""
        pairs = [(task, self.of(task.name, LORA)) for task in TASKS if task.name not in self.kept.missing]
        for way in OPTIMIZERS:
            both = [(found, lora) for task, lora in pairs for found in [self.of(task.name, way)]]
            sound = [(a, b) for a, b in both if isinstance(a, Result) and isinstance(b, Result)]
            goal, metric = _NONE if way == LOMO else None, f"beyond {LORA}, and its 95% interval"
            work = self._work(f"each of {len(pairs)} tasks, their mean")
            if way == LORA:
                continue
            if not sound or len(sound) < len(pairs):
                yield Row(work, way, metric, "bits/byte", None, goal, reason="there was no time for all tasks")
                continue
            yield Row(work, way, metric, "bits/byte", _interval(_mean_beyond(sound)), goal)

    def _work(self, words: str) -> str:
        shared = self.kept.shared
        how = "float32, products in TF32" if shared["device"] == "cuda" else "float32"
        return (
            f"trained {shared['model']} tuned on {words}; {shared['steps']} steps of {BATCH} × {LENGTH} tokens, {how},"
            " held-out documents, three seeds"
        )

    def _note(self, task: str, way: str, found: Result) -> str:
        run = found.runs[0]
        if "rate" not in run:
            return ""
        tried = len(tried_rates(task, way, self.kept.bits))
        return f"{format_count(run['trained'])} parameters, learning rate {run['rate']:g} of {tried} tried"


def _mean_beyond(pairs: Sequence[tuple[Result, Result]]) -> Interval:
    above: list[float] = []
    for one, other in pairs:
        whole = sum(one.sizes) * len(pairs)
        above += [(mine - theirs) / whole for mine, theirs in zip(one.documents, other.documents, strict=True)]
    return interval.ratio(above, [1 / len(above)] * len(above))


def _interval(found: Interval) -> Spread:
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return Spread(found.value, low, high)
