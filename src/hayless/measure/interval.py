"""Figures with their uncertainty: the bootstrap over documents (Efron 1979), plain and paired.

Documents are what is drawn with replacement, because tokens of one document are not independent. Draws are seeded, so
an interval is a function of the figures alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hayless.core.errors import RequestError

RESAMPLES = 2000
_SEED = 0
_CHUNK = 4_000_000

Column = NDArray[np.float64]
Table = NDArray[np.float64]


class Interval(BaseModel):
    """A figure and its 95% interval; no interval (None) where it rests on a single document."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """True when the interval lies on one side of zero: a difference beyond the noise."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Σ numerators / Σ denominators over documents, with the interval of that ratio. Denominators are positive."""
    return difference((numerators, denominators), None)


def difference(
    one: tuple[Sequence[float], Sequence[float]], other: tuple[Sequence[float], Sequence[float]] | None
) -> Interval:
    """The ratio of `one` minus the ratio of `other` (or 0), resampling the same documents for both."""
    pairs = [_checked(pair) for pair in (one, other) if pair is not None]
    count = len(pairs[0][0])
    if any(len(column) != count for pair in pairs for column in pair):
        raise RequestError("The figures are not over the same documents.")
    value = float(_difference(pairs, np.ones(count)))
    if count == 1:
        return Interval(value=value)
    resampled = np.concatenate([_difference(pairs, weights) for weights in _weights(count)])
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def absolute(columns: Table, denominators: Sequence[float] | Column) -> Interval:
    """Σ_b |Σ_d columns[d, b]| / Σ_d denominators[d] of columns (documents, b), with its interval over documents.

    Resampling adds noise, which makes a sum of absolute values larger on average; the interval is moved down by as
    much (and not below 0), so that it lies around the figure. Raises as `ratio`.
    """
    above = np.asarray(columns, dtype=np.float64)
    _, below = _checked((np.abs(above).sum(axis=1).tolist(), list(denominators)))
    value = float(np.abs(above.sum(axis=0)).sum() / below.sum())
    if len(above) == 1:
        return Interval(value=value)
    resampled = np.concatenate(
        [np.abs(weights @ above).sum(axis=1) / (weights @ below) for weights in _weights(len(above))]
    )
    low, high = np.percentile(resampled, [2.5, 97.5]) - (resampled.mean() - value)
    return Interval(value=value, low=max(0.0, float(low)), high=float(high))


def _difference(pairs: list[tuple[Column, Column]], weights: Column) -> Column:
    """The ratio of the first pair, minus that of the second if there is one, for each row of document weights."""
    ratios = [(weights @ above) / (weights @ below) for above, below in pairs]
    return ratios[0] - ratios[1] if len(ratios) == 2 else ratios[0]


def _weights(count: int) -> Iterator[Column]:
    """How often each of `count` documents is in each resample: RESAMPLES rows, in chunks that fit memory."""
    if count * RESAMPLES <= _CHUNK:
        yield _few_weights(count)
        return
    generator = np.random.default_rng(_SEED)
    rows = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


@lru_cache(maxsize=2)
def _few_weights(count: int) -> Column:
    """All resamples at once: a study compares many runs over the same documents, and drawing takes most of the time."""
    generator = np.random.default_rng(_SEED)
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)


def _checked(pair: tuple[Sequence[float], Sequence[float]]) -> tuple[Column, Column]:
    above, below = (np.asarray(column, dtype=np.float64) for column in pair)
    if not len(above):
        raise RequestError("There is nothing to average: no documents.")
    if not np.isfinite(above).all() or not np.isfinite(below).all() or (below <= 0).any():
        raise RequestError("Figures must be finite, and what they are divided by positive.")
    return above, below
