"""What a user can set about palettization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.common.packed_rows import PackingConfig


class KMeansConfig(PackingConfig):
    """Weights become indices into a codebook found by k-means; text is needed for their importance only."""

    method: Literal["kmeans"] = "kmeans"
    bits: int = Field(4, ge=1, le=8, description="Bits an index: a codebook has 2^bits values.")
    group_size: int | None = Field(
        None, ge=1, description="Output channels that share a codebook; one codebook a matrix if not given."
    )
    keep_zeros: bool = Field(
        True, description="Zeros keep an index of their own where there are any, so that pruned weights stay pruned."
    )
    importance: Literal["inputs", "fisher"] | None = Field(
        None,
        description="What errors of weights count by, over a text: squared inputs, or squared gradients of its loss"
        " (Fisher). All alike if not given.",
    )
    iterations: int = Field(200, ge=1, description="Lloyd's iterations at most; most codebooks stand still earlier.")
