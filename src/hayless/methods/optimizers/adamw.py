"""AdamW: Adam whose weight decay is not scaled by the second moment."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.cost import TrainShape
from hayless.core.dtypes import item_bytes
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged


class AdamWConfig(MethodConfig):
    """Adam with decoupled weight decay; two moments a parameter."""

    method: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate; the schedule takes a share of it.")
    betas: tuple[float, float] = Field(
        (0.9, 0.95), description="Decay of the two moments an update, each from 0 up to but not 1."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment, against division by zero.")
    weight_decay: float = Field(0.1, ge=0, description="Share of a weight that learning_rate takes away an update.")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="What weight_decay acts on: matrices alone, or vectors, norms and embeddings too."
    )

    @model_validator(mode="after")
    def _betas_below_one(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}: each must be at least 0 and below 1")
        return self


def state_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Two moments in the parameter's dtype, and a float32 that counts steps."""
    return 2 * math.prod(shape) * item_bytes(dtype) + 4


def predict_training(shape: TrainShape, config: AdamWConfig) -> TrainShape:
    """Training with AdamW's state."""
    return replace(shape, state_bytes=state_bytes)


METHOD = Method(
    name="adamw",
    part=Part.OPTIMIZER,
    summary="Adam with decoupled weight decay",
    config=AdamWConfig,
    implementation="hayless.methods.optimizers.standard:AdamW",
    predict=unchanged,
    predict_training=predict_training,
    paper=Paper("Decoupled Weight Decay Regularization", "Loshchilov and Hutter", 2019, "1711.05101"),
)
