"""The search itself: min over w of L(w) + α·mean|wᵢ| (Huang et al., 2023, arXiv:2307.13269, section 3.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from hayless.core.errors import MissingExtra

_SURROGATE = 30


def search(
    loss: Callable[[Sequence[float]], float], count: int, *, steps: int, bound: float, penalty: float, seed: int
) -> tuple[list[float], float]:
    """The best weights of `count` modules that were tried, within ±`bound`, and their loss without the penalty.

    nevergrad's NGOpt proposes them, from zero on. MissingExtra without nevergrad.
    """
    try:
        import nevergrad
    except ImportError:
        raise MissingExtra("nevergrad", "hub", "searching weights without gradients") from None
    space = nevergrad.p.Array(init=np.zeros(count), lower=-bound, upper=bound)
    space.random_state.seed(seed)
    best: tuple[float, list[float], float] | None = None
    with warnings.catch_warnings():
        # It hands its solvers tolerances that they remark on.
        warnings.simplefilter("ignore")
        # From so many tries a weight on it would take a surrogate that fails under numpy 2 (nevergrad 1.0.12).
        optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=min(steps, _SURROGATE * count - 1))
        for _ in range(steps):
            asked = optimizer.ask()
            weights = [float(weight) for weight in asked.value]
            found = loss(weights)
            total = found + penalty * float(np.abs(weights).mean())
            optimizer.tell(asked, total)
            if best is None or total < best[0]:
                best = total, weights, found
    assert best is not None
    return best[1], best[2]
