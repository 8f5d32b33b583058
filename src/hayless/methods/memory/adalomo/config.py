"""What a user can set about AdaLomo."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.core.method import MethodConfig


class AdaLomoConfig(MethodConfig):
    """Adaptive steps, each weight moved in the backward pass; state is one float32 a row and one a column.

    Updates are normalized matrix by matrix, so that clipping by the norm of all gradients, which takes a second
    backward pass, has little left to do: set `clip_norm: null` in the training step.
    """

    method: Literal["adalomo"] = "adalomo"
    learning_rate: float = Field(
        5e-4,
        gt=0,
        description="Peak relative step: the share of a weight's root mean square that an update moves it by.",
    )
    beta2_decay: float = Field(
        -0.8, le=0, description="The second moment keeps 1 − t^beta2_decay of what it was at update t."
    )
    eps: float = Field(1e-30, gt=0, description="Added to squared gradients, against division by zero.")
    least_scale: float = Field(1e-3, gt=0, description="The least size of weights that steps are shares of.")
    clip_threshold: float = Field(1.0, gt=0, description="Largest root mean square of an update.")
    clip_value: float | None = Field(
        None,
        gt=0,
        description="Largest size of an element of a gradient, after clip_norm; null leaves them as they are.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight that a relative step takes away besides.")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="What weight_decay acts on: matrices alone, or vectors, norms and embeddings too."
    )
