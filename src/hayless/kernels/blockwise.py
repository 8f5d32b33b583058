"""Numbers in 8 bits, block by block, by the dynamic map (Dettmers et al., 2021, arXiv:2110.02861, sections 2.1 and 3).

A block is divided by its largest size, and each quotient becomes the place of the nearest of 256 values between −1 and
1 (or 0 and 1). These are closer together near zero: decade by decade (ten to the 0, −1, … −6) there are half as many,
each the middle of an equal step from a tenth of the decade to its end.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

_DECADES = 7


@cache
def dynamic_map(signed: bool) -> Tensor:
    """The 256 values in order, float32 on the CPU; without a sign twice as many a decade, from 0 up."""
    found = [torch.tensor([0.0, 1.0])]
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        means = 10.0 ** (decade - _DECADES + 1) * ((edges[:-1] + edges[1:]) / 2)
        found += [means, -means] if signed else [means]
    return torch.cat(found).sort().values


def quantize(values: Tensor, signed: bool, block: int) -> tuple[Tensor, Tensor]:
    """Codes (n,) uint8 and scales (⌈n / block⌉,) float32 of float32 values (n,). Blocks of zeros have scale 0."""
    blocks = _padded(values, block).view(-1, block)
    scales = blocks.abs().amax(1)
    _, middles = map_on(values.device, signed)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    codes = torch.bucketize(shares, middles, out_int32=True).to(torch.uint8)
    return codes.view(-1)[: len(values)], scales


def dequantize(codes: Tensor, scales: Tensor, signed: bool, block: int) -> Tensor:
    """The float32 values that codes (n,) stand for."""
    table, _ = map_on(codes.device, signed)
    blocks = table[_padded(codes, block).int()].view(-1, block)
    return blocks.mul_(scales.unsqueeze(1)).view(-1)[: len(codes)]


@cache
def map_on(device: torch.device, signed: bool) -> tuple[Tensor, Tensor]:
    """The 256 values and the 255 middles between them, brought to a device once."""
    table = dynamic_map(signed)
    return table.to(device), ((table[:-1] + table[1:]) / 2).to(device)


def _padded(values: Tensor, block: int) -> Tensor:
    missing = -len(values) % block
    return F.pad(values, (0, missing)) if missing else values
