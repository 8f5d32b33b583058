"""Where the moments of paged AdamW lie, and what is on the device while they are used."""

from __future__ import annotations

import math
from dataclasses import replace

from hayless.core.cost import TrainShape
from hayless.core.dtypes import item_bytes
from hayless.methods.memory.paged.config import PagedConfig

PAGE_ELEMENTS = 2**22
"""Elements of a page. Two are on the device at once, so that one is moved while the other is used."""
VECTOR = 64
"""Where ranges begin that are moved by themselves, in elements: any CPU's vectors then hold what they would in all."""


def resident_elements(elements: int, share: float) -> int:
    """How many elements' moments stay on the device, the first ones: whole vectors of any CPU's, or all."""
    return elements if share == 1 else int(share * elements) // VECTOR * VECTOR


def state_bytes(shape: tuple[int, ...], dtype: str, share: float) -> int:
    """Bytes on the device: both moments of what stays there, and a float32 that counts steps."""
    return 2 * resident_elements(math.prod(shape), share) * item_bytes(dtype) + 4


def scratch_bytes(shape: tuple[int, ...], dtype: str, share: float) -> int:
    """Bytes of the pages on the device: two, of both moments."""
    elements = math.prod(shape)
    paged = elements - resident_elements(elements, share)
    return 2 * item_bytes(dtype) * sum(min(PAGE_ELEMENTS, max(0, paged - start)) for start in (0, PAGE_ELEMENTS))


def predict_training(shape: TrainShape, config: PagedConfig) -> TrainShape:
    """Training with part of the state elsewhere. On a CPU there is no elsewhere."""
    share = config.device_share if shape.device == "cuda" else 1.0
    return replace(
        shape,
        state_bytes=lambda of, dtype: state_bytes(of, dtype, share),
        scratch_bytes=lambda of, dtype: scratch_bytes(of, dtype, share),
    )
