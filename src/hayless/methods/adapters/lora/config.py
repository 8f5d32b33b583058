"""What a user can set about LoRA."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.core.roles import Role
from hayless.methods.common.sites import ModuleTargets, branch_claims
from hayless.methods.common.targets import one_or_many

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]


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
    ranks: dict[str, Rank] = Field({}, description="Another rank for some targets, by their names; the first counts.")
    alphas: dict[str, Alpha] = Field({}, description="Another alpha for some targets, as `ranks`.")
    dora: bool = Field(
        False, description="Train the length of each output's weights apart from their direction (arXiv:2402.09353)."
    )
    initial: Literal["kaiming", "pissa"] = Field(
        "kaiming",
        description="kaiming: A random, B zero; pissa: the target's largest singular vectors (arXiv:2404.02948).",
    )
    rate_ratio: float = Field(
        1.0, gt=0, description="LoRA+: B learns at so many times the rate of A (arXiv:2402.12354 found 16 good)."
    )
    whole: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        (), description="What trains whole beside the branches: norm, embedding, head, or modules by name or path."
    )

    def scale(self, rank: int, alpha: float) -> float:
        """What the output of a branch of this rank and alpha is multiplied by."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    @property
    def scaling(self) -> float:
        """What a branch's output is multiplied by, where no other rank or alpha is given for it."""
        return self.scale(self.rank, self.alpha)

    @property
    def is_sum(self) -> bool:
        """Whether what it adds to each weight is scaling · BA, with one rank and scaling for all, and nothing else."""
        return not (self.ranks or self.alphas or self.dora or self.whole)

    @property
    def in_files(self) -> LoraConfig:
        """The plain LoRA that files hold: one that began with singular vectors has twice the rank there.

        What it learnt is s·(BA − B₀A₀), a sum of two products, against the base as it was.
        """
        if self.initial == "kaiming":
            return self
        more = math.sqrt(2) if self.rslora else 2
        return self.model_copy(
            update={
                "initial": "kaiming",
                "rank": 2 * self.rank,
                "alpha": more * self.alpha,
                "ranks": {name: 2 * rank for name, rank in self.ranks.items()},
                "alphas": {name: more * alpha for name, alpha in self.alphas.items()},
            }
        )


def claims(config: LoraConfig) -> tuple[Claim, ...]:
    """It adds branches to its targets, and decides that others train."""
    beside = branch_claims(config.targets)
    if not config.whole:
        return beside
    also = frozenset({Role.EMBEDDING, Role.POSITION, Role.NORM, Role.HEAD})
    return (*beside, Claim(Aspect.BRANCH, also))


def rate(config: LoraConfig, name: str) -> float:
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354, section 4): B's learning rate is a multiple of A's."""
    return config.rate_ratio if name.endswith("lora_B.weight") else 1.0
