"""What 8-bit moments take."""

from __future__ import annotations

import math
from dataclasses import replace

from hayless.core.cost import TrainShape, alone, no_state
from hayless.methods.optimizers.adamw8bit.config import AdamW8bitConfig

CHUNK_ELEMENTS = 2**22
"""Elements of a tensor that plain PyTorch computes in float32 at once, about: whole blocks."""
_SCRATCH_BYTES = 28
"""For each of them: gradient, both moments, a weight, a quotient, and while a moment is rounded its place as int32."""


def state_bytes(shape: tuple[int, ...], config: AdamW8bitConfig) -> int:
    """Two codes an element and two scales a block; of a small tensor two float32."""
    elements = math.prod(shape)
    if elements < config.least_elements:
        return 8 * elements
    return 2 * elements + 2 * 4 * -(-elements // config.block_size)


def scratch_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Part of an update in float32, in plain PyTorch."""
    return _SCRATCH_BYTES * min(CHUNK_ELEMENTS, math.prod(shape))


def move_launches(shape: tuple[int, ...]) -> int:
    """Operations of plain PyTorch: as many as were counted for each part of a parameter."""
    return 33 * math.ceil(math.prod(shape) / CHUNK_ELEMENTS)


def predict_training(shape: TrainShape, config: AdamW8bitConfig) -> TrainShape:
    """Training with this state. On GPUs one kernel moves a parameter, which needs nothing beside it."""
    kernel = shape.device == "cuda"
    return replace(
        shape,
        state_bytes=lambda of, dtype: state_bytes(of, config),
        scratch_bytes=no_state if kernel else scratch_bytes,
        move_launches=alone if kernel else move_launches,
    )
