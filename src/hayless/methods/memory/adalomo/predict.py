"""What AdaLomo changes about training: a small state, gradients that go as soon as they are used, and scratch."""

from __future__ import annotations

import math
from dataclasses import replace

from hayless.core.cost import TrainShape
from hayless.kernels import adalomo_sizes
from hayless.methods.memory.adalomo.config import AdaLomoConfig


def state_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """A float32 a row and one a column of each matrix; a vector has as many as it has elements."""
    elements = math.prod(shape)
    return 4 * (elements // shape[-1] + elements // shape[-2] if len(shape) > 1 else elements)


def predict_training(shape: TrainShape, config: AdaLomoConfig) -> TrainShape:
    """Training with updates in the backward pass. RequestError for several micro-batches an update."""

    def scratch_bytes(of: tuple[int, ...], dtype: str) -> int:
        return adalomo_sizes.scratch_bytes(of, shape.device)

    return replace(shape, state_bytes=state_bytes, scratch_bytes=scratch_bytes, fused=True)
