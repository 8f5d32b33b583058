"""How sure a model is, beside how often it is right.

A prediction has a confidence, the probability that the model gives what it says, and is right or wrong (a tie is one
half). Predictions are put in bins of confidence of equal width, and the expected calibration error is

    ECE = Σ_b n_b / n · |accuracy_b − confidence_b|

over means in each bin b (Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599, equation 3).

- A token of an output: the likeliest token's probability, in 15 bins from 0 to 1 (theirs).
- A pair of answers: the probability σ(|r_w − r_l|) that Bradley and Terry's model gives the answer with the higher
  score, in 10 bins from ½ to 1.

Few predictions give an error even where confidences are right: `by_chance` is what they would give then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from hayless.core import atomic, drawing
from hayless.core.errors import RequestError
from hayless.measure import interval
from hayless.measure.interval import Interval

TOKEN_BINS, PAIR_BINS = (0.0, 15), (0.5, 10)
"""(lowest confidence, number of bins up to 1)."""


class Judged(BaseModel):
    """The predictions of one document or pair: how sure each was, and whether it was right (1, 0, or ½ for a tie)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    confidence: tuple[float, ...]
    right: tuple[float, ...]


class Bin(BaseModel):
    """Predictions whose confidence is above `low` (or 0) and at most `high`: how many, and their means.

    `spread` is the standard deviation that the accuracy of so many would have if their confidences were right and they
    were independent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    spread: float


class Calibration(BaseModel):
    """The calibration error of `count` predictions, and the bins (without empty ones) that it comes from.

    The interval is over documents. `by_chance`: the error that as many independent predictions of these confidences
    would show on average if each confidence were right (each bin's difference taken as normal).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    error: Interval
    by_chance: float
    count: int
    bins: tuple[Bin, ...]

    @property
    def note(self) -> str:
        """What the error rests on, in words."""
        return (
            f"{self.count:,} predictions in {len(self.bins)} bins of confidence; right confidences would give"
            f" {self.by_chance:.4f} by chance"
        )


def calibration(judged: Sequence[Judged], lowest: float, bins: int) -> Calibration:
    """The calibration of predictions in `bins` bins of equal width from `lowest` to 1. RequestError where there are
    none."""
    if not any(found.confidence for found in judged):
        raise RequestError("There is nothing to calibrate: no predictions.")
    edges = np.linspace(lowest, 1, bins + 1)
    # (documents, bins): how many, and the sums of confidence, of what was right, and of c(1 − c).
    counts, sure, right, variance = (np.zeros((len(judged), bins)) for _ in range(4))
    for number, found in enumerate(judged):
        c_n = np.asarray(found.confidence)
        place_n = np.clip(np.searchsorted(edges, c_n, side="left") - 1, 0, bins - 1)
        for table, values_n in (
            (counts, np.ones_like(c_n)),
            (sure, c_n),
            (right, np.asarray(found.right)),
            (variance, c_n * (1 - c_n)),
        ):
            table[number] = np.bincount(place_n, weights=values_n, minlength=bins)
    total = counts.sum(axis=0)
    spread = np.sqrt(variance.sum(axis=0))
    return Calibration(
        error=interval.absolute(right - sure, counts.sum(axis=1)),
        by_chance=float(math.sqrt(2 / math.pi) * spread.sum() / total.sum()),
        count=int(total.sum()),
        bins=tuple(
            Bin(
                low=edges[b],
                high=edges[b + 1],
                count=int(total[b]),
                confidence=sure[:, b].sum() / total[b],
                accuracy=right[:, b].sum() / total[b],
                spread=spread[b] / total[b],
            )
            for b in np.flatnonzero(total)
        ),
    )


def draw(found: Calibration, what: str, form: drawing.Form) -> bytes:
    """The reliability diagram: accuracy over confidence, with the range in which 95% of right confidences would fall,
    and below it how many predictions each bin holds. `what` names them (`tokens`, `pairs`)."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    low = min(0.5 if entry.low >= 0.5 else 0.0 for entry in found.bins)
    x_b, y_b, half_b = (
        np.array([value(entry) for entry in found.bins])
        for value in (lambda b: b.confidence, lambda b: b.accuracy, lambda b: 1.96 * b.spread)
    )
    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(figsize=(5.2, 5.6), facecolor="white")
        above, below = figure.add_axes((0.13, 0.36, 0.83, 0.56)), figure.add_axes((0.13, 0.10, 0.83, 0.19))
        for axes in (above, below):
            drawing.plain(axes)
            axes.set_xlim(low, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        above.plot([low, 1], [low, 1], color=drawing.RULE, linewidth=1, zorder=1)
        above.vlines(
            x_b, np.clip(x_b - half_b, 0, 1), np.clip(x_b + half_b, 0, 1), color=drawing.RULE, linewidth=6, zorder=2
        )
        above.vlines(x_b, np.minimum(x_b, y_b), np.maximum(x_b, y_b), color=drawing.ORANGE, linewidth=1.2, zorder=3)
        above.plot(x_b, y_b, "o", color=drawing.BLUE, markersize=6, zorder=4, clip_on=False)
        above.set_ylim(min(low, float(y_b.min())) - 0.03, 1.03)
        above.yaxis.set_major_formatter(PercentFormatter(1))
        above.set_ylabel("right")
        below.bar(
            [entry.low for entry in found.bins],
            [entry.count for entry in found.bins],
            [entry.high - entry.low for entry in found.bins],
            align="edge",
            color=drawing.BLUE,
            edgecolor="white",
        )
        below.set_ylabel(what)
        below.set_xlabel("confidence")
        title = f"calibration error {_written(found.error)} over {found.count:,} {what}"
        chance = f"{found.by_chance:.3f} by chance; grey: where 95% of right confidences would lie"
        above.set_title(f"{title}\n{chance}", loc="left", fontsize=9)
        return drawing.save(figure, form)


def write(found: Calibration, what: str, folder: Path) -> None:
    """Write the reliability diagram into a folder, as `reliability.json`, `.svg` and `.png`."""
    atomic.write_json(folder / "reliability.json", {"what": what, **found.model_dump()})
    for form in get_args(drawing.Form):
        atomic.write_bytes(folder / f"reliability.{form}", draw(found, what, form))


def _written(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
