"""LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) in plain PyTorch, on any device; what its kernels are held to.

y = x·Wᵀ + b, for W as int8 codes (out, in) with the largest magnitude of each row, and x (tokens, in) in 16 or 32 bits:
columns of x with any magnitude of at least a threshold are multiplied as they are; the rest of x is quantized, each
token by its own largest magnitude, multiplied as int8 and summed in int32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hayless.kernels.packed.formats import Integers

LARGEST = 127
"""The largest code."""


def outlying_columns(x: Tensor, threshold: float) -> Tensor:
    """Which columns of x (tokens, in) lie out, (in,) bool. A threshold of 0 is none.

    What is no finite number always lies out, so that it stays none in the product.
    """
    return (~(x.abs() < (threshold or math.inf))).any(dim=0)


def quantize(x: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int8 of x (tokens, in), zeros in columns that lie out, each token's largest magnitude beside them (tokens,)
    in float32 (float64 for float64), and the numbers of those columns (int64)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    outlying = outlying_columns(wide, threshold)
    kept = wide.masked_fill(outlying, 0.0)
    codes, scale = rows_quantized(kept)
    return codes, scale, outlying.nonzero()[:, 0]


def rows_quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 of x (…, width) and each row's largest magnitude (…,) in x's dtype: round(127·x / largest)."""
    scale = x.abs().amax(dim=-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    # A number divided by a tensor would be multiplied by its reciprocal, and rounded twice.
    inverse = torch.where(scale > 0, scale.new_tensor(LARGEST) / scale, 0.0)
    return (x * inverse[..., None]).round().to(torch.int8), scale


def product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """x (tokens, in) · Wᵀ + bias → (tokens, out) in x's dtype; `weight` int8 (out, in), `weight_scale` (out,)."""
    codes, scale, index = quantize(x, threshold)
    y = integer_product(codes, weight).to(scale.dtype) * (scale / LARGEST)[:, None]
    if len(index):
        y += x[:, index].to(y.dtype) @ weight[:, index].to(y.dtype).T
    y *= (weight_scale / LARGEST).to(y.dtype)
    return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a (m, k) · bᵀ (n, k) of int8 → (m, n) int32, exactly."""
    if a.device.type == "cpu":
        return torch._int_mm(a, b.T)
    # 1024 products of codes fit into the 24 bits that float32 keeps.
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for first in range(0, a.shape[1], 1024):
        total += (a[:, first : first + 1024].float() @ b[:, first : first + 1024].float().T).to(torch.int32)
    return total


def as_integers(weight: Tensor, weight_scale: Tensor) -> Integers:
    """int8 codes (out, in) and the largest magnitude of each row as packed integers."""
    return Integers(weight.view(torch.uint8), weight_scale[:, None], 8, twos_complement=True, divisor=LARGEST)
