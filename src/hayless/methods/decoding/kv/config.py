"""What a user can set about a quantized cache. No torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.method import MethodConfig


class KVConfig(MethodConfig):
    """Keys and values are quantized when they are no longer among the latest; nothing but the cache changes."""

    method: Literal["kv"] = "kv"
    bits: Literal[2, 4, 8] = Field(4, description="Bits of a key's or a value's number.")
    group_size: int = Field(
        32,
        ge=1,
        description="Numbers that share a scale: tokens of a channel of keys, channels of a token's values (all those"
        " of a head, where it has fewer).",
    )
    residual: int = Field(
        128,
        ge=1,
        description="Tokens quantized at once, a multiple of group_size: so many of the latest values stay in full"
        " precision, and up to one fewer of the latest keys.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.residual % self.group_size:
            raise ValueError(
                f"residual is {self.residual}, no multiple of group_size {self.group_size}: keys are quantized by whole"
                " groups of tokens"
            )
        return self
