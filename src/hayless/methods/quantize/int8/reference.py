"""LLM.int8() as the paper writes it: slow, obvious, in the precision of its input (float64 for tests).

Dettmers et al. 2022 (arXiv:2208.07339). Section 2.1, absmax quantization; 3.1, vector-wise: a scale for each row of X
and each column of W; 3.2, equation 8:

    X·W ≈ Σ_{h ∈ O} X^h W^h + S · Σ_{h ∉ O} X_i8^h W_i8^h,   O = {h | some |X_ij| ≥ α, j = h}

Here W is as torch.nn.Linear holds it, (out, in), so its columns of the paper are rows. h stands for a feature.
"""

from __future__ import annotations

import torch
from torch import Tensor


def absmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """X_i8 = round(127 · X / max|X|) for each row, and those maxima; a row of zeros is zeros."""
    largest = torch.stack([row.abs().max() if row.numel() else row.new_zeros(()) for row in x])
    return torch.round(127 * x / torch.where(largest > 0, largest, 1.0)[:, None]), largest


def outliers(x: Tensor, threshold: float) -> list[int]:
    """O: features with a magnitude of at least the threshold in any row of x (tokens, in); none for 0."""
    return [h for h in range(x.shape[1]) if threshold > 0 and bool((x[:, h].abs() >= threshold).any())]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """x (tokens, in) · Wᵀ + b → (tokens, out), where W is held as codes alone: outliers meet the dequantized W."""
    out = outliers(x, threshold)
    rest = [h for h in range(x.shape[1]) if h not in out]
    w_codes, w_largest = absmax(weight)
    x_codes, x_largest = absmax(x[:, rest])
    sums = (x_codes.long() @ w_codes[:, rest].long().T).to(x.dtype)
    y = sums * x_largest[:, None] * w_largest[None] / 127**2
    y = y + x[:, out] @ dequantized(weight)[:, out].T
    return y if bias is None else y + bias


def dequantized(weight: Tensor) -> Tensor:
    """W after quantization, (out, in)."""
    codes, largest = absmax(weight)
    return codes * largest[:, None] / 127


def gradient(towards: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x for one of y, (tokens, out): quantization is passed straight through, W is the dequantized."""
    return towards @ dequantized(weight)
