"""Fitting L(N, D) = E + A/N^α + B/D^β to runs, with intervals.

Hoffmann et al., 2022 (arXiv:2203.15556), section 3.3 and appendix D.2: the sum over runs of

    Huber_δ(LSE(a − α log N, b − β log D, e) − log L),  A, B, E = exp(a), exp(b), exp(e),  δ = 10⁻³

is minimised by L-BFGS from a grid of starts. What differs:

- It is minimised in units of δ². Unscaled it is of the order of 10⁻⁶, where optimizers stop before they have begun;
  that is how the printed coefficients came about (Besiroglu et al., 2024, arXiv:2404.10102).
- log N and log D are counted from their means, where a and α are told apart: about half the evaluations.
- The sum is computed at each point of the grid, and descent starts from the lowest ones. The grid is of the terms at
  the means and of the exponents; its terms reach from a hundredth of the mean loss to all of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hayless.core.errors import MissingExtra, RequestError, bad_value
from hayless.plan.scaling import Parametric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Point = tuple[float, float, float]
"""N, D and loss of a run."""

DELTA = 1e-3
FEWEST_POINTS, FEWEST_VALUES = 6, 3
"""Runs that a fit of five numbers needs, and different values of N and of D among them."""
STARTS = 40
RESAMPLES = 400

SEARCHED = (0.02, 2.0)
"""Exponents are at least and at most so large."""

_TERMS = (0.01, 0.1, 0.3, 0.6, 1.0)
_EXPONENTS = (SEARCHED[0], 0.5, 1.0, 1.5, SEARCHED[1])
_BOUNDS = (*[(-12.0, 5.0)] * 3, *[SEARCHED] * 2)
"""Of the logarithms of the terms at the means, and of the exponents. Any budget has an optimum within them."""


def fit(points: Sequence[Point]) -> Parametric:
    """The law of least loss of fit. RequestError for too few runs, and for figures that no law has."""
    check(points)
    runs = _Runs.of(points)
    return runs.law(_descend(runs, _lowest(runs, STARTS)))


def resample(points: Sequence[Point], law: Parametric, count: int = RESAMPLES, seed: int = 0) -> list[Parametric]:
    """Fits to `count` resamples of the runs with replacement: what the law might have been with other runs.

    Each descends from `law`, the fit to all. A resample with too few sizes or numbers of tokens is drawn again. The
    2.5th and 97.5th percentile of a figure over the laws are its 95% interval.
    """
    import numpy as np

    check(points)
    generator = np.random.default_rng(seed)
    runs = _Runs.of(points)
    best = runs.coordinates(law)
    found: list[Parametric] = []
    while len(found) < count:
        chosen = generator.integers(len(points), size=len(points))
        if _enough([points[index] for index in chosen]):
            drawn = runs.chosen(chosen)
            found.append(drawn.law(_descend(drawn, [best])))
    return found


def check(points: Sequence[Point]) -> None:
    """RequestError where there are too few runs for a fit, or a figure is not a finite number above 0."""
    for point in points:
        for field, value in zip(("parameters", "tokens", "loss"), point, strict=True):
            if not (value > 0 and math.isfinite(value)):
                raise bad_value(field, value, allowed="a finite number above 0")
    if not _enough(points):
        sizes, lengths = (len({point[place] for point in points}) for place in (0, 1))
        raise RequestError(
            f"Too few runs for a fit: {len(points)}, of {sizes} sizes and {lengths} numbers of tokens.",
            hint=f"It takes at least {FEWEST_POINTS} runs besides the held-out one, {FEWEST_VALUES} sizes and"
            f" {FEWEST_VALUES} numbers of tokens; recipes/scaling.yaml makes such runs.",
        )


def at_edge(exponent: float) -> bool:
    """Whether an exponent ended at the edge of what is searched: the runs do not say what it is."""
    return min(abs(exponent - edge) for edge in SEARCHED) < 1e-6


def _enough(points: Sequence[Point]) -> bool:
    values = min(len({point[place] for point in points}) for place in (0, 1))
    return len(points) >= FEWEST_POINTS and values >= FEWEST_VALUES


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs as columns: log N and log D from their means, and log L.

    A law has the coordinates (a′, b′, e, α, β), where a′ = a − α·mean log N is the logarithm of its term at the mean.
    """

    log_n: Array
    log_d: Array
    log_l: Array
    mean_n: float
    mean_d: float

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Runs:
        import numpy as np

        log_n, log_d, log_l = np.log(np.asarray(points, dtype=np.float64)).T
        mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
        return cls(log_n - mean_n, log_d - mean_d, log_l, mean_n, mean_d)

    def chosen(self, places: Any) -> _Runs:
        """Some of them, any number of times, from the same means."""
        return replace(self, log_n=self.log_n[places], log_d=self.log_d[places], log_l=self.log_l[places])

    def law(self, at: Iterable[float]) -> Parametric:
        a, b, e, alpha, beta = map(float, at)
        return Parametric(math.exp(e), math.exp(a + alpha * self.mean_n), math.exp(b + beta * self.mean_d), alpha, beta)

    def coordinates(self, law: Parametric) -> tuple[float, ...]:
        a, b = math.log(law.a) - law.alpha * self.mean_n, math.log(law.b) - law.beta * self.mean_d
        return a, b, math.log(law.irreducible), law.alpha, law.beta

    def objective(self, at: Array) -> tuple[float, Array]:
        """The loss of fit in units of δ², and its gradient."""
        import numpy as np

        a, b, e, alpha, beta = at
        by_n, by_d, rest = np.exp(a - alpha * self.log_n), np.exp(b - beta * self.log_d), math.exp(e)
        loss = by_n + by_d + rest
        residuals = (np.log(loss) - self.log_l) / DELTA
        slopes = np.clip(residuals, -1, 1) / DELTA / loss
        by_n, by_d = by_n * slopes, by_d * slopes
        gradient = (by_n.sum(), by_d.sum(), rest * slopes.sum(), -(by_n @ self.log_n), -(by_d @ self.log_d))
        return float(_huber(residuals).sum()), np.array(gradient)


def _lowest(runs: _Runs, count: int) -> list[Array]:
    """The points of the grid with the least loss of fit."""
    import numpy as np

    terms = [math.log(share) + float(runs.log_l.mean()) for share in _TERMS]
    grid = np.array(list(itertools.product(terms, terms, terms, _EXPONENTS, _EXPONENTS)))
    a, b, e, alpha, beta = (grid[:, [place]] for place in range(5))
    loss = np.exp(a - alpha * runs.log_n) + np.exp(b - beta * runs.log_d) + np.exp(e)
    found = _huber((np.log(loss) - runs.log_l) / DELTA).sum(axis=1)
    return list(grid[np.argsort(found, kind="stable")[:count]])


def _descend(runs: _Runs, starts: Sequence[Any]) -> Array:
    """The best end of L-BFGS from each start."""
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtra("scipy", "fit", "Fitting a scaling law") from None

    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-12, "gtol": 1e-8}
    ends = [
        minimize(runs.objective, start, jac=True, method="L-BFGS-B", bounds=_BOUNDS, options=options)
        for start in starts
    ]
    best: Array = min(ends, key=lambda end: end.fun).x
    return best


def _huber(x: Array) -> Array:
    """Huber's loss with δ = 1: x²/2 up to 1, |x| − 1/2 beyond."""
    import numpy as np

    size = np.abs(x)
    return np.where(size <= 1, x * x / 2, size - 0.5)
