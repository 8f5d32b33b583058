"""What AdaLomo changes about training: a small state, gradients that go as soon as they are used, and scratch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from hayless.core.cost import TrainShape
from hayless.kernels import adalomo_sizes
from hayless.methods.memory.adalomo.config import AdaLomoConfig


def state_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """A float32 a row and one a column of each matrix; a vector has as many as it has elements."""
    elements = math.prod(shape)
    return 4 * (elements // shape[-1] + elements // shape[-2] if len(shape) > 1 else elements)


def move_launches(shape: tuple[int, ...], device: Literal["cuda", "cpu"]) -> int:
    """A kernel and what it counts with a matrix, one a vector; or, in plain PyTorch, as many as were counted."""
    if len(shape) < 2:
        return 1 if device == "cuda" else 23
    return (2 if device == "cuda" else 38) * math.prod(shape[:-2])


def predict_training(shape: TrainShape, config: AdaLomoConfig) -> TrainShape:
    """Training with updates in the backward pass, which read a gradient three times and a weight twice. RequestError
    for several micro-batches an update."""
    device = shape.device
    return replace(
        shape,
        state_bytes=state_bytes,
        scratch_bytes=lambda of, dtype: adalomo_sizes.scratch_bytes(of, device),
        move_launches=lambda of: move_launches(of, device),
        move_passes=6,
        fused=True,
    )
