"""What a user can set about uniform quantization."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.methods.common.integers import DiskLayout, IntegerConfig


class UniformConfig(IntegerConfig):
    """Weights become the nearest of evenly spaced values; nothing but the weights is needed."""

    method: Literal["uniform"] = "uniform"
    clip: bool = Field(
        False, description="Search each scale for the least squared error, instead of covering the largest weight."
    )
    twos_complement: bool = Field(
        False, description="2 bits as published: 01 = 1, 00 = 0, 11 = −1, 10 = −2. The values are the same."
    )

    disk_layout: DiskLayout = Field(
        "compressed-tensors",
        description="Whose layout the files are in, where it has one for such weights: compressed-tensors, gptq (the"
        " second version of its files), gptq_v1, awq.",
    )

    @model_validator(mode="after")
    def _published(self) -> Self:
        if self.twos_complement and (self.bits != 2 or not self.symmetric):
            raise ValueError("twos_complement is the published form of symmetric 2-bit weights: say bits=2")
        return self
