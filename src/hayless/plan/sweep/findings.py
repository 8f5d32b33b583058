"""What a sweep says: the law, laws that it might have been, and the run that they had not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hayless.core.errors import bad_value, unknown
from hayless.plan.scaling import Parametric, flops
from hayless.plan.sweep.fit import RESAMPLES, fit, resample
from hayless.plan.sweep.runs import Counted, Run, Sweep

LARGEST, NONE = "largest", "none"
SAME_SIZE, SAME_TOKENS = 0.02, 0.01
"""By how much runs that differ in shape alone may differ in N and D, as shares."""


@dataclass(frozen=True, slots=True)
class Findings:
    """A law fitted to `runs`, laws fitted to resamples of them, and the run that was held out (None: none was)."""

    counted: Counted
    runs: tuple[Run, ...]
    held_out: Run | None
    law: Parametric
    laws: tuple[Parametric, ...]
    left_out: tuple[str, ...]

    def interval(self, figure: Callable[[Parametric], float]) -> tuple[float, float]:
        """The 95% interval of a figure of the law, over the resamples."""
        values = sorted(figure(law) for law in self.laws)
        low, high = math.floor(0.025 * (len(values) - 1)), math.ceil(0.975 * (len(values) - 1))
        return values[low], values[high]

    def compute(self, run: Run) -> float:
        """6ND of a run."""
        return flops(run.size(self.counted), run.tokens)

    def predicted(self, run: Run) -> float:
        """The law's loss of a run."""
        return self.law.loss(run.size(self.counted), run.tokens)

    @property
    def shapes(self) -> list[list[Run]]:
        """Groups of runs that differ in depth and width alone, N without embeddings being the same; widest first."""
        groups: list[list[Run]] = []
        for run in sorted((*self.runs, *filter(None, [self.held_out])), key=lambda run: run.layers):
            for group in groups:
                if near(run.non_embedding, group[0].non_embedding, SAME_SIZE) and near(
                    run.tokens, group[0].tokens, SAME_TOKENS
                ):
                    group.append(run)
                    break
            else:
                groups.append([run])
        return [group for group in groups if len({run.layers for run in group}) > 1]


def analyse(sweep: Sweep, counted: Counted = "total", held_out: str = LARGEST, resamples: int = RESAMPLES) -> Findings:
    """Fit the law to all runs but `held_out`: the one of most compute, one by its name, or none.

    RequestError for too few runs, or where nothing is called so.
    """
    if resamples < 40:
        raise bad_value("resamples", resamples, allowed="a whole number of at least 40, for a 95% interval")
    apart = _held_out(sweep.runs, counted, held_out)
    runs = tuple(run for run in sweep.runs if run is not apart)
    points = [(run.size(counted), run.tokens, run.loss) for run in runs]
    law = fit(points)
    return Findings(counted, runs, apart, law, tuple(resample(points, law, resamples)), sweep.left_out)


def spread(group: Sequence[Run]) -> float:
    """By how much the worst shape's loss is above the best one's, as a share."""
    losses = [run.loss for run in group]
    return max(losses) / min(losses) - 1


def near(one: float, other: float, share: float) -> bool:
    """Whether two counts differ by at most `share` of the second."""
    return abs(one / other - 1) <= share


def _held_out(runs: Sequence[Run], counted: Counted, name: str) -> Run | None:
    if name == NONE or not runs:
        return None
    if name == LARGEST:
        return max(runs, key=lambda run: flops(run.size(counted), run.tokens))
    named = [run for run in runs if run.name == name]
    if not named:
        raise unknown("run", name, [LARGEST, NONE, *(run.name for run in runs)])
    return named[0]
