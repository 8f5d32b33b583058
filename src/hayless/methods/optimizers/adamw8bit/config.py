"""What a user can set about AdamW with 8-bit moments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.optimizers.adamw import AdamWConfig


class AdamW8bitConfig(AdamWConfig):
    """Adam with decoupled weight decay; a byte for each moment of a parameter, and a float32 for each block of them."""

    method: Literal["adamw8bit"] = "adamw8bit"  # type: ignore[assignment]
    block_size: int = Field(256, ge=16, description="Elements that share a scale, their largest size.")
    least_elements: int = Field(
        4096, ge=0, description="Tensors with fewer elements keep float32 moments: they are small and matter most."
    )
