"""LOMO as the paper has it (Lv et al., 2023, sections 3.1 to 3.3), on whole lists of gradients.

What fusing gains is memory alone, so the plain form takes all gradients first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lomo(
    weights: list[Tensor],
    gradients: list[Tensor],
    *,
    learning_rate: float,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> list[Tensor]:
    """The weights after one update, each (…) like its gradient; clipped by the norm of all, then by value."""
    coefficient: Tensor | float = 1.0
    if clip_norm is not None:
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        coefficient = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    moved = []
    for weight, gradient in zip(weights, gradients, strict=True):
        clipped = gradient * coefficient
        if clip_value is not None:
            clipped = clipped.clamp(-clip_value, clip_value)
        moved.append(weight - learning_rate * clipped)
    return moved
