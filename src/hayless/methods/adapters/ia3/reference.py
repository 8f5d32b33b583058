"""IA³ as the paper writes it (Liu et al. 2022, arXiv:2205.05638, section 3.3)."""

from __future__ import annotations

from torch import Tensor


def scaled_output(x: Tensor, w: Tensor, bias: Tensor | None, vector: Tensor) -> Tensor:
    """l ⊙ (Wx + b): x (…, in), w (out, in), vector (out,) → (…, out)."""
    out = x @ w.T if bias is None else x @ w.T + bias
    return vector * out


def scaled_input(x: Tensor, w: Tensor, bias: Tensor | None, vector: Tensor) -> Tensor:
    """W(l ⊙ x) + b: x (…, in), w (out, in), vector (in,) → (…, out)."""
    out = (vector * x) @ w.T
    return out if bias is None else out + bias
