"""AdamW with 8-bit moments as the paper has it, on whole tensors: read, update as AdamW does, round again."""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.kernels.blockwise import dynamic_map


def rounded(values: Tensor, signed: bool, block: int) -> Tensor:
    """What is left of values (n,) after 8 bits: of each block, the nearest values of the map times its largest size."""
    found = []
    for part in values.split(block):
        scale = part.abs().max()
        shares = part / scale if scale > 0 else part
        nearest = (shares.unsqueeze(1) - dynamic_map(signed)).abs().argmin(1)
        found.append(dynamic_map(signed)[nearest] * scale)
    return torch.cat(found)


def adamw8bit(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (n,) and both moments, rounded, after update `step`, counted from 1."""
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient.square()
    mean, variance = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
    weight = weight - learning_rate * (weight_decay * weight + mean / (variance.sqrt() + eps))
    return weight, rounded(first, True, block), rounded(second, False, block)
