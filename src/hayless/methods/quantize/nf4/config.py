"""What a user can set about 4-bit blocks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.common.packed_rows import PackingConfig


class NF4Config(PackingConfig):
    """Weights become 4-bit codes of 16 values, scaled by the largest magnitude of their block; no data is needed."""

    method: Literal["nf4"] = "nf4"
    type: Literal["nf4", "fp4", "int4"] = Field(
        "nf4", description="The 16 values: quantiles of a normal distribution, 4-bit floats, or even steps."
    )
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        64, description="Neighbouring weights of a row-major matrix that share a scale."
    )
    double: bool = Field(
        True, description="Keep the scales in 8 bits too, 256 of them to a second scale (double quantization)."
    )
