"""What a user can set about LoRA."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from hayless.core.method import Claim, MethodConfig
from hayless.methods.common.sites import ModuleTargets, branch_claims


class LoraConfig(MethodConfig):
    """A trained product of two thin matrices beside each target; everything else is frozen."""

    method: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Width r of the thin matrices A (r, in) and B (out, r).")
    alpha: float = Field(16.0, gt=0, description="The branch is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the branch's inputs set to zero while training.")
    targets: ModuleTargets = Field(
        ("blocks",),
        description="Where branches are added: roles (q, v), groups (blocks, attention, feed_forward), or modules by"
        " name or path as PEFT has them (q_proj; .q where the name is also a role's).",
    )
    rslora: bool = Field(False, description="Scale by alpha / √rank instead (rank-stabilised, arXiv:2312.03732).")

    @property
    def scaling(self) -> float:
        """What the branch's output is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def claims(config: LoraConfig) -> tuple[Claim, ...]:
    """It adds branches to its targets."""
    return branch_claims(config.targets)
