"""What a user can set about pruning by magnitude."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.core.options import Count
from hayless.methods.common.targets import Targets, roles_of


class MagnitudeConfig(MethodConfig):
    """The smallest weights become zero and stay zero in later training."""

    method: Literal["magnitude"] = "magnitude"
    nonzero: Count | None = Field(
        None, ge=2, description="N of ‖W‖₀ < N: the targets together keep their N − 1 largest weights."
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Share of the targets' weights to remove; 0.5 where nonzero is not given either."
    )
    scope: Literal["global", "tensor"] = Field(
        "global",
        description="global: all targets compete. tensor: each weight tensor loses the same share (layer-wise in the"
        " literature's words; the experts of a layer are one tensor).",
    )
    targets: Targets = Field(("blocks",), description="Roles or groups of roles whose weights are pruned.")

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.nonzero is not None and self.sparsity is not None:
            raise ValueError("give nonzero or sparsity, not both")
        return self


def claims(config: MagnitudeConfig) -> tuple[Claim, ...]:
    """It writes values into the targets."""
    return (Claim(Aspect.VALUES, roles_of(config.targets)),)
