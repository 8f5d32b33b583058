"""Speculative sampling for one text, as the papers write it: slow and obvious.

Leviathan, Kalman and Matias (arXiv:2211.17192, algorithm 1) call the model's distribution p and the draft's q; Chen et
al. (arXiv:2302.01318, algorithm 2) call the model's q and the draft's p. Here they are `target` and `draft`:

    a drafted token x is kept with probability      min(1, target(x) / draft(x))
    the first that is not is replaced by one from   norm((target − draft)₊)
    where all are kept, one more comes from         target

The token that comes out is distributed as `target`: the chance of x is min(draft(x), target(x)) for being kept, and
what is missing to target(x), (target(x) − draft(x))₊, is what the replacement adds.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def speculate(
    target: Tensor, draft: Tensor, tokens: Sequence[int], keep: Sequence[float], last: Sequence[float]
) -> list[int]:
    """The tokens of one pass: those of the K drafted `tokens` that are kept, and one more.

    target (K + 1, v) are the model's probabilities at the places of the drafted tokens and behind them; draft (K, v)
    are those that the tokens were drawn from. Numbers in [0, 1) decide: `keep` (K) whether a drafted token is kept,
    `last` (K + 1) which token follows, by its place.
    """
    for place, token in enumerate(tokens):
        if keep[place] * draft[place, token] >= target[place, token]:
            residual = (target[place] - draft[place]).clamp(min=0)
            # Where rounding leaves nothing, both distributions are the same.
            return [*tokens[:place], sample(residual if residual.sum() > 0 else target[place], last[place])]
    return [*tokens, sample(target[-1], last[-1])]


def sample(weights: Tensor, uniform: float) -> int:
    """The token at which the running sum of weights (v,) passes `uniform` of the whole; never one of weight 0."""
    running = weights.double().cumsum(0)
    passed = (running > uniform * running[-1]).nonzero()
    # A uniform just below 1 may be rounded up: then the last token that adds anything.
    return int(passed[0]) if len(passed) else int((running == running[-1]).nonzero()[0])
