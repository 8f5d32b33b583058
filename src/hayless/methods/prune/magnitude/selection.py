"""Exactly the smallest weights of many tensors, without a copy of them all.

The bits of a float32 that is not negative, read as a whole number, keep its order; so the k-th smallest magnitude is
found by counting the upper and then the lower 16 bits. 16-bit weights are float32 numbers and lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def zero_smallest(weights: Sequence[Tensor], count: int) -> float:
    """Set the `count` smallest magnitudes of all tensors together to zero, in place; return the largest of these.

    Of equal magnitudes the earlier (in the order of tensors and of their elements) goes first, so the number is exact.
    """
    if count == 0:
        return 0.0
    threshold, ties = _kth(weights, count)
    for weight in weights:
        keys = _keys(weight)
        smaller, equal = keys < threshold, keys == threshold
        found = int(equal.sum())
        if found > ties:
            equal &= (equal.flatten().cumsum(0) <= ties).view(equal.shape)
        ties -= min(found, ties)
        weight.masked_fill_(smaller | equal, 0)
    return float(torch.tensor(threshold, dtype=torch.int32).view(torch.float32))


def _kth(weights: Sequence[Tensor], count: int) -> tuple[int, int]:
    """The key of the count-th smallest magnitude, and how many of those equal to it are among the `count`."""
    upper = sum(_counts(_keys(weight) >> 16) for weight in weights)
    high, left = _reach(upper, count)
    lower = sum(_counts(keys[keys >> 16 == high] & 0xFFFF) for keys in map(_keys, weights))
    low, left = _reach(lower, left)
    return (high << 16) | low, left


def _reach(counts: Tensor | int, count: int) -> tuple[int, int]:
    """The first bin up to which there are `count`, and how many of that bin are needed."""
    assert isinstance(counts, Tensor)
    total = counts.cumsum(0)
    place = int(torch.searchsorted(total, count))
    return place, count - int(total[place] - counts[place])


def _counts(keys: Tensor) -> Tensor:
    return torch.bincount(keys.flatten(), minlength=2**16).cpu()


def _keys(weight: Tensor) -> Tensor:
    return weight.detach().float().abs().contiguous().view(torch.int32)
