"""Prefix tuning as the paper writes it (Li and Liang 2021, arXiv:2101.00190, sections 4.1 and 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    """Causal attention of one head over [P_k; K] and [P_v; V]: q, k, v (s, d), prefixes (n, d) → (s, d)."""
    keys, values = torch.cat([prefix_k, k]), torch.cat([prefix_v, v])
    scores = q @ keys.T / q.shape[1] ** 0.5
    hidden = torch.ones_like(scores, dtype=torch.bool).tril(len(prefix_k)).logical_not()
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=1) @ values


def projected(table: Tensor, inner: tuple[Tensor, Tensor], outer: tuple[Tensor, Tensor]) -> Tensor:
    """P = MLP(P′): table (n, hidden), weights (out, in) and biases of two layers → (n, width)."""
    return torch.tanh(table @ inner[0].T + inner[1]) @ outer[0].T + outer[1]
