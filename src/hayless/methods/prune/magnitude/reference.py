"""Pruning by magnitude as the paper writes it: sort everything, drop the smallest.

Han, Pool, Tran and Dally 2015 (arXiv:1506.02626); as a problem: argmin over W_P of ‖W − W_P‖ subject to ‖W_P‖₀ < N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prune(weights: Sequence[Tensor], kept: int) -> list[Tensor]:
    """Copies of `weights` in which all but the `kept` largest are zero; of equals, the earlier goes first."""
    flat = torch.cat([weight.flatten().double() for weight in weights])
    order = flat.abs().sort(stable=True).indices
    flat[order[: len(flat) - kept]] = 0
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view(weight.shape).to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]
