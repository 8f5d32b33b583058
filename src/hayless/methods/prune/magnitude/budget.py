"""How many weights are kept, exactly: the same whole numbers for predictions and for tensors. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from hayless.core.errors import bad_value
from hayless.methods.prune.magnitude.config import MagnitudeConfig

_DEFAULT_SPARSITY = 0.5


def kept_in_all(size: int, config: MagnitudeConfig) -> int:
    """Weights kept of `size`. RequestError where that would be none, or where more are asked for than there are."""
    if config.nonzero is not None:
        if config.nonzero > size:
            raise bad_value(
                "magnitude.nonzero", config.nonzero, allowed=f"2 to {size}, the number of weights in the targets"
            )
        return config.nonzero - 1
    sparsity = _DEFAULT_SPARSITY if config.sparsity is None else config.sparsity
    kept = size - round(sparsity * size)
    if kept == 0:
        raise bad_value("magnitude.sparsity", sparsity, allowed=f"a share that leaves one of {size} weights or more")
    return kept


def kept_of_each(sizes: Sequence[int], config: MagnitudeConfig) -> list[int]:
    """Weights kept of each tensor in the scope `tensor`."""
    if config.nonzero is None:
        return [kept_in_all(size, config) for size in sizes]
    kept = in_proportion(kept_in_all(sum(sizes), config), sizes)
    if 0 in kept:
        raise bad_value(
            "magnitude.nonzero", config.nonzero, allowed=f"enough to leave each of {len(sizes)} tensors a weight"
        )
    return kept


def in_proportion(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` dealt out in proportion to `sizes`, by largest remainders, the earlier first where they are equal."""
    whole = sum(sizes)
    if whole == 0:
        return [0] * len(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda place: -(total * sizes[place] % whole))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares
