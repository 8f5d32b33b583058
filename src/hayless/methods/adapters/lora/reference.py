"""LoRA as the paper writes it (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""

from __future__ import annotations

import math

from torch import Tensor


def scaling(alpha: float, rank: int, *, rslora: bool) -> float:
    """α/r, or α/√r (Kalajdzievski 2023, arXiv:2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def forward(x: Tensor, w0: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """h = W₀x + s·BAx: x (…, in), w0 (out, in), a (r, in), b (out, r) → (…, out)."""
    delta = b @ a
    h = x @ w0.T + scale * (x @ delta.T)
    return h if bias is None else h + bias


def dora(x: Tensor, w0: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, magnitude: Tensor, scale: float) -> Tensor:
    """W' = m · (W₀ + s·BA) / ‖W₀ + s·BA‖, each row of weights by itself, whose norm is no function of what is trained
    (Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3): shapes as above, magnitude (out,).

    The paper's W has its outputs in columns.
    """
    w = w0 + scale * b @ a
    directed = w / w.norm(dim=1, keepdim=True).detach()
    h = x @ (magnitude[:, None] * directed).T
    return h if bias is None else h + bias
