"""Where tokens may leave, and which threshold a risk allows. No torch.

Calibration is Learn-then-Test (Angelopoulos et al., 2021, arXiv:2110.01052) as CALM uses it (Schuster et al., 2022,
arXiv:2207.07061, section 3.2). R_i(λ) in [0, 1] is the share of the tokens of window i that differ from the whole
model's where tokens leave at threshold λ. Windows are drawn independently. For each λ the hypothesis E R(λ) > risk is
tested, from the largest λ on, and testing ends at the first that is not rejected: so the chance that any λ that was
rejected has a larger risk is at most δ.

The p-value is Hoeffding's bound in its first form (1963, theorem 1), which CALM's exp(−2n(risk − R̂)²) follows from:

    P(mean of n ≤ r) ≤ exp(−n · kl(r, risk)),   kl(r, q) = r·ln(r/q) + (1−r)·ln((1−r)/(1−q)),   for r ≤ risk
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hayless.core.errors import RequestError
from hayless.methods.decoding.early_exit.config import EarlyExitConfig

THRESHOLDS = tuple(1 - 2**-halvings for halvings in (12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0))
"""Those that are tried, from .9998 down to 0, denser where confidences are."""


def least_layers(config: EarlyExitConfig, layers: int) -> int:
    """Layers that every token goes through. RequestError where that is not fewer than the model has."""
    least = config.least or -(-layers // 4)
    if least >= layers:
        raise RequestError(
            f"early_exit.least = {least} is not possible; allowed: fewer than the model's {layers} layers."
        )
    return least


def exits(config: EarlyExitConfig, layers: int) -> range:
    """The numbers of layers behind which a token may leave.

    Never behind the first by the cosine of states: what enters that one is no layer's output. By schedule, any.
    """
    least = least_layers(config, layers)
    if config.confidence == "schedule":
        return range(least, layers)
    return range(max(least, 2) if config.confidence == "state" else least, layers, config.every)


def scheduled_layers(config: EarlyExitConfig, layers: int, place: int) -> int:
    """Layers of the token at `place`, counted from the first that is made (0): never more than of the one before.

    From all layers down to `least` in even steps over `over` tokens (Del Corro et al., SkipDecode, 2023,
    arXiv:2307.02628, section 3).
    """
    least = least_layers(config, layers)
    share = min(place / (config.over - 1), 1.0)
    return layers - round((layers - least) * share)


def p_value(mean: float, count: int, risk: float) -> float:
    """Of the hypothesis that the risk is larger than `risk`, from the mean over `count` independent windows."""
    if mean >= risk:
        return 1.0
    first = mean * math.log(mean / risk) if mean > 0 else 0.0
    return math.exp(-count * (first + (1 - mean) * math.log((1 - mean) / (1 - risk))))


def smallest_risk(count: int, delta: float) -> float:
    """The smallest risk that `count` windows without any difference allow."""
    return 1 - delta ** (1 / count)


def first_failing(risks: Callable[[float], float], count: int, risk: float, delta: float) -> list[tuple[float, float]]:
    """(threshold, mean risk) of every threshold that was tried, in order, `risks` giving the mean over `count` windows.

    All but the last were rejected, and the last too if it is the smallest there is.
    """
    tried = []
    for threshold in THRESHOLDS:
        tried.append((threshold, risks(threshold)))
        if p_value(tried[-1][1], count, risk) > delta:
            break
    return tried
