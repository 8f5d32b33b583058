"""What speculation gives: tokens a pass and speed-up.

Leviathan et al., 2022, arXiv:2211.17192; Chen et al., 2023, arXiv:2302.01318.

α is the chance that a drafted token is accepted, γ how many are drafted, c what one draft costs beside a step of the
target, v what a pass of the target over γ + 1 tokens costs beside its step (the papers take 1). All assume that
acceptances are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul

from hayless.core.cost import DecodeShape
from hayless.core.errors import RequestError, bad_value
from hayless.methods.decoding.speculative.config import LOOKUP, MOST, SELF, SpeculativeConfig

MOST_DRAFTED = 64
"""The best γ is looked for up to here."""


def acceptances(draft: Sequence[float], target: Sequence[float]) -> list[float]:
    """min(1, q/p) for each drafted token: p the draft's probability of it, q the target's."""
    if len(draft) != len(target) or not draft:
        raise RequestError(f"draft has {len(draft)} probabilities and target {len(target)}; give as many of each.")
    for field, values in (("draft", draft), ("target", target)):
        for value in values:
            if not (0 < value <= 1 if field == "draft" else 0 <= value <= 1):
                raise bad_value(field, value, allowed="probabilities up to 1, a draft's above 0")
    return [min(1.0, q / p) for p, q in zip(draft, target, strict=True)]


def tokens_of(accepted: Sequence[float]) -> float:
    """Expected tokens of one pass: 1 and the chance that each drafted token and all before it are accepted."""
    return 1 + sum(accumulate(accepted, mul))


def expected_tokens(acceptance: float, drafted: int) -> float:
    """(1 − α^(γ+1)) / (1 − α), which is γ + 1 where α is 1."""
    if not 0 <= acceptance <= 1:
        raise bad_value("alpha", acceptance, allowed="a number from 0 to 1")
    if isinstance(drafted, bool) or not isinstance(drafted, int) or drafted < 0:
        raise bad_value("gamma", drafted, allowed="a whole number of at least 0")
    return tokens_of([acceptance] * drafted)


def speedup(acceptance: float, drafted: int, cost: float, verify: float = 1.0) -> float:
    """Expected tokens over what a pass costs: γc + v."""
    if not cost >= 0:
        raise bad_value("c", cost, allowed="a number of at least 0")
    if not verify > 0:
        raise bad_value("v", verify, allowed="a number above 0")
    return expected_tokens(acceptance, drafted) / (drafted * cost + verify)


def best_drafted(
    acceptance: float, cost: float, verify: Callable[[int], float] = lambda drafted: 1.0, most: int = MOST_DRAFTED
) -> int:
    """The γ up to `most` with the largest speed-up; 0 where drafting does not pay. `verify` gives v for a γ."""
    return max(range(most + 1), key=lambda drafted: speedup(acceptance, drafted, cost, verify(drafted)))


def predict_decoding(shape: DecodeShape, config: SpeculativeConfig) -> DecodeShape:
    """How many tokens are checked in one pass at most, and which model is held to draft them."""
    draft = None if config.draft in (LOOKUP, SELF) else config.draft
    return replace(
        shape, drafted=MOST if config.tokens == "auto" else config.tokens, draft=draft, tried=config.preflight
    )
