"""What a benchmark is: works, who does them, and what they must agree on before anything is timed.

A spec is a Python file whose `SPEC` is a `Spec`. It may import modules from its own folder. The first contender of a
work is the one that the others must equal and are compared with.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hayless.core.errors import RequestError, WorkError, unknown
from hayless.core.measurement import Goal
from hayless.study.bench.gate import Answer, Same
from hayless.study.bench.timing import Run, Stopwatch

TIME, RATE, PEAK = "time", "rate", "peak memory"
"""Metrics: milliseconds of one piece of the work, tokens a second, bytes above what was held before."""

Clock = Literal["host", "device"]
"""The caller's, who waits for the device, or that of CUDA events."""


class Unavailable(WorkError):
    """A contender cannot take part here, for the reason given: a package, a file or a device is missing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Something of a contender that is neither time nor memory: the size of what it writes, say."""

    metric: str
    unit: str
    value: float
    better: Literal["lower", "higher"] = "lower"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A contender ready to work.

    `answer` is what it computes, by name; it is asked once, before any repeat. `run` is one repeat of the work, and
    `less` the part of it whose time does not count (a prompt that is read before tokens are made): it is run and timed
    by itself after each repeat, and taken off. `figures` are asked for in the end.
    """

    run: Run
    answer: Callable[[], Answer]
    less: Run | None = None
    figures: Callable[[], Sequence[Figure]] = tuple

    def seconds(self, stopwatch: Stopwatch) -> float:
        """Seconds of one repeat."""
        whole = stopwatch(self.run)
        return whole if self.less is None else whole - stopwatch(self.less)


@dataclass(frozen=True, slots=True)
class Contender:
    """Who does a work, how it gets ready, the packages that it needs and the goals that it is held to, by metric.

    `repeats`: fewer than the work's, for one that is so slow that few will do.
    """

    name: str
    prepare: Callable[[], Prepared]
    needs: tuple[str, ...] = ()
    goals: Mapping[str, Goal | tuple[Goal, ...]] = field(default_factory=dict)
    repeats: int | None = None

    def goals_of(self, metric: str) -> tuple[Goal, ...]:
        """Every goal that `metric` is held to."""
        found = self.goals.get(metric, ())
        return found if isinstance(found, tuple) else (found,)

    def ready(self) -> Prepared:
        """The contender, prepared. Unavailable where a package is missing."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if missing:
            raise Unavailable(f"{' and '.join(missing)} not installed")
        return self.prepare()


@dataclass(frozen=True, slots=True)
class Bound:
    """What a piece of a work takes at least, in seconds, and what that follows from."""

    seconds: float
    note: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A contender that is computed, not run: its time is a `bound`, from rates that are measured when it is asked."""

    name: str
    bound: Callable[[], Bound]


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to do, in words that say all that its figures depend on.

    A repeat is `pieces` pieces, each a `piece` (step, token). `same` judges answers. `tokens` are those of a piece,
    where tokens/s say something. `compared` is False where contenders' figures say nothing of each other, unless a goal
    sets them beside. `rehearse` loads what libraries load on first use, in the fresh process before memory
    is read. `peaks` is False where memory says nothing, `timed` where time does: then only figures are written. `clock`
    is the spec's where it is None.
    """

    name: str
    contenders: Sequence[Contender]
    same: Same
    piece: str
    pieces: int = 1
    tokens: int | None = None
    repeats: int = 20
    warmup: int = 3
    peaks: bool = True
    timed: bool = True
    compared: bool = True
    rehearse: Callable[[], object] | None = None
    limit: Limit | None = None
    clock: Clock | None = None

    def repeats_of(self, contender: Contender) -> int:
        """Repeats of one contender."""
        return self.repeats if contender.repeats is None else min(self.repeats, contender.repeats)

    def contender(self, name: str) -> Contender:
        """The contender called `name`."""
        for one in self.contenders:
            if one.name == name:
                return one
        raise unknown("contender", name, [one.name for one in self.contenders])


@dataclass(frozen=True, slots=True)
class Spec:
    """Works on one device under one number of threads.

    `turns` is how times are taken: `interleaved` in one process, a repeat of each contender in turn, so that whatever
    else the machine does falls on all; `alone` one contender after the other, each in a fresh process, where they do
    not fit into memory together.
    """

    name: str
    works: Sequence[Work]
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    turns: Literal["interleaved", "alone"] = "interleaved"
    clock: Clock = "host"

    def work(self, name: str) -> Work:
        """The work called `name`."""
        for one in self.works:
            if one.name == name:
                return one
        raise unknown("work", name, [one.name for one in self.works])


def load(path: Path) -> Spec:
    """The `SPEC` of a spec's file. RequestError where there is none."""
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.py"))
        raise RequestError(f"There is no spec {path}.", hint=f"There are: {', '.join(there) or 'none'}.")
    found = importlib.util.spec_from_file_location(f"_spec_{path.stem}", path)
    assert found is not None and found.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.parent))
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    spec = getattr(module, "SPEC", None)
    if not isinstance(spec, Spec):
        raise RequestError(f"{path} declares no benchmark: SPEC must be a Spec.")
    return spec
