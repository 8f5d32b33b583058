"""What a user can set about LLM.int8()."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.common.packed_rows import PackingConfig


class Int8Config(PackingConfig):
    """Weights become 8-bit integers; inputs too when they are multiplied, except for their columns of outliers."""

    method: Literal["int8"] = "int8"
    threshold: float = Field(
        6.0,
        ge=0,
        description="A column of the input with a magnitude of at least this is multiplied in 16 bits; 0: none is.",
    )
