"""The values that 4-bit codes stand for, and those of the 8-bit codes of double quantization.

NF4 (QLoRA, arXiv:2305.14314, section 3 and appendix E): each value is the quantile of a normal distribution in the
middle of its share of the probability, 8 shares above zero and 7 below, so that zero has a code; all are divided by the
largest. The ends lie at probability 0.9677083, the mean of 1 − 1/32 and 1 − 1/30. float32 in the places below gives the
published table to the last bit.

The 8-bit values (Dettmers, *8-Bit Approximations for Parallelism in Deep Learning*, arXiv:1511.04561): a decimal
exponent of 0 to −6 whose length in bits grows as it falls, and what is left of 7 bits as a fraction from 0.1 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

CPU = torch.device("cpu")
"""Where tables are made, whatever device is the default: they are kept."""
END = 0.9677083
"""The probability of the outermost quantile before all are divided by it."""


@cache
def values_of(kind: str, device: torch.device = CPU) -> Tensor:
    """The 16 values of `nf4`, `fp4` or `int4` by code, float32; the largest magnitude that is used is 1.

    fp4 is a sign, two bits of exponent and one of fraction; int4 is two's complement, of which −8 is never used.
    """
    if device != CPU:
        return values_of(kind).to(device)
    if kind == "nf4":
        above = torch.linspace(END, 0.5, 9, device=CPU)[:-1].tolist()
        below = torch.linspace(END, 0.5, 8, device=CPU)[:-1].tolist()
        return normal_values(above, below)
    if kind == "fp4":
        half = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3], device=CPU)
        return torch.cat([half, -half]) / 12
    return torch.tensor([*range(8), *range(-8, 0)], device=CPU) / 7


@cache
def pairs_of(kind: str, device: torch.device = CPU) -> Tensor:
    """The two values that a byte of two codes stands for, (256, 2): the first is in its high half."""
    values = values_of(kind, device)
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1)


def normal_values(above: Iterable[float], below: Iterable[float]) -> Tensor:
    """Quantiles of a normal distribution at `above`, zero, and the negative ones at `below`, divided by the largest."""
    quantile = NormalDist().inv_cdf
    values = sorted([quantile(share) for share in above] + [0.0] + [-quantile(share) for share in below])
    found = torch.tensor(values, dtype=torch.float64, device=CPU).float()
    return found / found.max()


@cache
def scale_values(device: torch.device = CPU) -> Tensor:
    """The 256 values of 8-bit scales, rising, float32."""
    if device != CPU:
        return scale_values().to(device)
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, device=CPU)
        middles = 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values), device=CPU)


def nearest(x: Tensor, values: Tensor) -> Tensor:
    """The code of the value nearest to each of x, uint8; of two equally near the lower value."""
    order = values.argsort(stable=True)
    rising = values[order]
    found = torch.bucketize(x, (rising[:-1] + rising[1:]) / 2, out_int32=True)
    return order[found].byte()
