"""The fresh process in which a contender works alone: its times, its answer and its peak of memory are its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from hayless.measure.memory import MemoryMeter
from hayless.measure.process import answer, in_fresh_process
from hayless.study.bench.gate import plain
from hayless.study.bench.spec import Contender, Spec, Work, load
from hayless.study.bench.timing import DeviceClock, HostClock, Stopwatch

_REPEATS = 3
"""Repeats where only memory is asked for."""


def alone(path: Path, work: Work, contender: Contender, *, timed: bool) -> dict[str, Any]:
    """`contender` at `work` in a fresh process: `peak_bytes` and `note`; where `timed` also `answer`, `seconds` and
    `figures`.

    `path` is the spec's file, in which both are found again. The peak is above what was held before the contender got
    ready, and leaves out what only getting ready took, where the system allows that. Raises what the contender raises.
    """
    request = {"spec": str(path.resolve()), "work": work.name, "contender": contender.name, "timed": timed}
    return in_fresh_process("hayless.study.bench.worker", request)


def stopwatch_of(spec: Spec, work: Work) -> Stopwatch:
    """The stopwatch that a work asks for, or else its spec."""
    return DeviceClock() if (work.clock or spec.clock) == "device" else HostClock(spec.device)


def _work(request: dict[str, Any]) -> dict[str, Any]:
    spec = load(Path(request["spec"]))
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    work = spec.work(request["work"])
    if work.rehearse:
        work.rehearse()
    meter = MemoryMeter(torch.device(spec.device))
    contender = work.contender(request["contender"])
    ready = contender.ready()
    found: dict[str, Any] = {}
    if request["timed"]:
        found["answer"] = {name: numbers.tolist() for name, numbers in plain(ready.answer()).items()}
    meter.restart()
    for _ in range(work.warmup):
        ready.run()
    stopwatch = stopwatch_of(spec, work)
    seconds = [ready.seconds(stopwatch) for _ in range(work.repeats_of(contender) if request["timed"] else _REPEATS)]
    memory = meter.read()
    if request["timed"]:
        found["figures"] = [dataclasses.asdict(figure) for figure in ready.figures()]
    return found | {"seconds": seconds, "peak_bytes": memory.model_bytes, "note": memory.note}


if __name__ == "__main__":
    answer(_work)
