"""What a user can set about LOMO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.core.method import MethodConfig


class LomoConfig(MethodConfig):
    """Gradient descent without momentum, each weight moved in the backward pass; nothing is kept between updates.

    Clipping by the norm (`clip_norm` of the training step) takes a second backward pass; `clip_value` takes none.
    """

    method: Literal["lomo"] = "lomo"
    learning_rate: float = Field(0.03, gt=0, description="Peak learning rate; the schedule takes a share of it.")
    clip_value: float | None = Field(
        None,
        gt=0,
        description="Largest size of an element of a gradient, after clip_norm; null leaves them as they are.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Times the weight, added to the gradient.")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="What weight_decay acts on: matrices alone, or vectors, norms and embeddings too."
    )
