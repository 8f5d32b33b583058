"""AdapterFusion as the paper writes it (Pfeiffer et al. 2021, arXiv:2005.00247, section 3.2.1), module by module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fusion(x: Tensor, modules: Sequence[Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Σ_n s_n V z_n, s = softmax_n((Q x)·(K z_n)): x (…, in), each z_n in `modules` (…, out), query (w, in), key
    (w, out), value (out, out) → (…, out), which is added to what the base gives."""
    z = torch.stack(list(modules), -2)
    scores = ((x @ query.T)[..., None, :] * (z @ key.T)).sum(-1)
    return (scores.softmax(-1)[..., None] * (z @ value.T)).sum(-2)
