"""AdaLomo as the paper has it (Lv et al., 2023, arXiv:2310.10195, algorithm 1), a matrix or vector at a time.

r ← β·r + (1−β)·mean over columns of (g² + ε₁)     c ← the same over rows
v = r·c / mean(r)            u = g / √v            (a vector has its v whole)
û = u / max(1, RMS(u)/d)     θ ← θ − α·max(ε₂, RMS(θ))·û        β = 1 − t^−0.8
"""

from __future__ import annotations

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""(rows,) and (columns,) of a matrix; the second moment of a vector, whole."""


def adalomo(
    weight: Tensor,
    gradient: Tensor,
    state: State,
    step: int,
    *,
    learning_rate: float,
    beta2_decay: float = -0.8,
    eps: float = 1e-30,
    least_scale: float = 1e-3,
    clip_threshold: float = 1.0,
) -> tuple[Tensor, State]:
    """The weight and its state after update `step`, counted from 1; a state of zeros before the first."""
    beta = 1 - step**beta2_decay
    squares = gradient.square() + eps
    if weight.ndim == 2:
        rows = beta * state[0] + (1 - beta) * squares.mean(1)
        columns = beta * state[1] + (1 - beta) * squares.mean(0)
        second = torch.outer(rows, columns) / rows.mean()
        state = (rows, columns)
    else:
        second = beta * state[0] + (1 - beta) * squares
        state = (second,)
    update = gradient / second.sqrt()
    update = update / (_rms(update) / clip_threshold).clamp(min=1.0)
    return weight - learning_rate * _rms(weight).clamp(min=least_scale) * update, state


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
