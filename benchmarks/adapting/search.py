"""Which runs are wanted: learning rates on a seed and documents of their own, then the best rate with three seeds.

Rates are half a decade apart. Three are tried for everybody; while the best lies at an end, one more beyond it, five at
most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.adapting.ways import MODULE, UNTRAINED

SEARCHED, SEEDS = 100, (0, 1, 2)
"""The seed that rates are chosen with, and those of results."""
_FIRST, _MOST = (0, -1, 1), 5


@dataclass(frozen=True, slots=True)
class Run:
    """A way at a task; the learning rate is `halves` half decades above the way's own."""

    task: str
    way: str
    halves: int
    seed: int

    @property
    def searching(self) -> bool:
        """Whether it is to choose a rate."""
        return self.seed == SEARCHED

    def rate(self, middle: float) -> float:
        """The learning rate, for a way's own one."""
        return float(f"{middle * 10 ** (self.halves / 2):.2g}")


def wanted(task: str, way: str, found: Mapping[Run, float]) -> list[Run]:
    """The runs that are to be done next, and not done yet; none where all is done.

    `found` has the bits a byte of runs, infinity for those that failed.
    """
    if way in (UNTRAINED, MODULE):
        after = [Run(task, way, 0, SEEDS[0])]
    else:
        tried = tried_rates(task, way, found)
        after = [Run(task, way, halves, SEARCHED) for halves in _open(tried)]
        after = after or [Run(task, way, best(tried), seed) for seed in SEEDS]
    return [run for run in after if run not in found]


def tried_rates(task: str, way: str, found: Mapping[Run, float]) -> dict[int, float]:
    """Bits a byte of the rates that were tried, in half decades."""
    return {run.halves: bits for run, bits in found.items() if (run.task, run.way) == (task, way) and run.searching}


def best(tried: Mapping[int, float]) -> int:
    """The best rate, the lower of equals."""
    return min(tried, key=lambda halves: (tried[halves], halves))


def _open(tried: Mapping[int, float]) -> list[int]:
    """Rates that are still to be tried."""
    if len(tried) < len(_FIRST):
        return [halves for halves in _FIRST if halves not in tried]
    ends = {min(tried): -1, max(tried): 1}
    here = best(tried)
    return [here + ends[here]] if here in ends and len(tried) < _MOST else []
