"""A mixture of LoRAs as its equations are written (Zadouri et al. 2023, arXiv:2309.05444, equations 2 to 4, with the
gate's choice of some as in Shazeer et al. 2017, arXiv:1701.06538, equations 3 to 5), one LoRA after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def mixture(x: Tensor, gate: Tensor, a: Tensor, b: Tensor, scaling: float, top_k: int) -> Tensor:
    """Σ_e g_e(x) · s · B_e A_e x, g = softmax over the top_k largest of W_g x: x (…, in), gate (n, in), a (n, r, in),
    b (n, out, r) → (…, out). It is added to Wx + bias."""
    scores = x @ gate.T
    least = scores.topk(top_k, -1).values[..., -1:]
    shares = scores.masked_fill(scores < least, -torch.inf).softmax(-1)
    total = torch.zeros(*x.shape[:-1], b.shape[1], dtype=x.dtype)
    for share, thin, wide in zip(shares.unbind(-1), a, b, strict=True):
        total = total + share[..., None] * scaling * (x @ thin.T @ wide.T)
    return total
