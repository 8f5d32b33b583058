"""What a user can set about palettization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.methods.common.targets import Targets, roles_of


class KMeansConfig(MethodConfig):
    """Weights become indices into a codebook found by k-means; nothing but the weights is needed."""

    method: Literal["kmeans"] = "kmeans"
    bits: int = Field(4, ge=1, le=8, description="Bits an index: a codebook has 2^bits values.")
    group_size: int | None = Field(
        None, ge=1, description="Output channels that share a codebook; one codebook a matrix if not given."
    )
    targets: Targets = Field(("blocks",), description="Roles or groups of roles whose weights are packed.")
    keep_zeros: bool = Field(
        True, description="Zeros keep an index of their own where there are any, so that pruned weights stay pruned."
    )
    iterations: int = Field(200, ge=1, description="Lloyd's iterations at most; most codebooks stand still earlier.")


def claims(config: KMeansConfig) -> tuple[Claim, ...]:
    """It changes how the targets are stored."""
    return (Claim(Aspect.STORAGE, roles_of(config.targets)),)
