"""Products of 8-bit floats, slow and obvious: e4m3 from its definition, sums in the precision of the input.

Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv:2209.05433), table 1: e4m3 has 4 bits of exponent with a
bias of 7, 3 of mantissa, subnormal numbers, and 448 as its largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nearest(value: float) -> float:
    """The e4m3 number nearest to one of at most 448 in magnitude; of two, the one with an even mantissa."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(value)[1] - 1, -6)
    step = 2.0 ** (exponent - 3)
    return round(value / step) * step


def quantized(x: Tensor) -> Tensor:
    """Each row of x (rows, width) times one over its scale, rounded to e4m3, and back. A row's scale is its largest
    magnitude over 448. All of that is float32, so that what lies between two numbers goes where it goes elsewhere."""
    rows = []
    for row in x.float():
        scale = row.abs().max() / 448 if row.any() else torch.ones(())
        rows.append([nearest(float(value)) * float(scale) for value in row * (1 / scale)])
    return torch.tensor(rows, dtype=x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (tokens, in) · Wᵀ + b → (tokens, out), both factors quantized."""
    y = quantized(x) @ quantized(weight).T
    return y if bias is None else y + bias


def gradient(towards: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x for one of y, (tokens, out): quantization is passed straight through."""
    return towards @ quantized(weight)
