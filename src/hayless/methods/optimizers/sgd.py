"""Stochastic gradient descent, with momentum if asked for: the optimizer that needs least memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.cost import TrainShape, no_state
from hayless.core.dtypes import item_bytes
from hayless.core.method import Method, MethodConfig, Part, unchanged


class SgdConfig(MethodConfig):
    """Plain gradient steps; no state without momentum, one tensor a parameter with it."""

    method: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.1, gt=0, description="Peak learning rate; the schedule takes a share of it.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last update that is kept; 0 needs no memory.")
    nesterov: bool = Field(False, description="Look ahead along the momentum (Nesterov's variant).")
    weight_decay: float = Field(0.0, ge=0, description="Times the weight, added to the gradient.")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="What weight_decay acts on: matrices alone, or vectors, norms and embeddings too."
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


def momentum_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """One tensor in the parameter's dtype."""
    return math.prod(shape) * item_bytes(dtype)


def predict_training(shape: TrainShape, config: SgdConfig) -> TrainShape:
    """Training with what SGD remembers: nothing without momentum."""
    return replace(shape, state_bytes=momentum_bytes if config.momentum else no_state)


METHOD = Method(
    name="sgd",
    part=Part.OPTIMIZER,
    summary="Gradient descent with optional momentum: almost no optimizer memory",
    config=SgdConfig,
    implementation="hayless.methods.optimizers.standard:Sgd",
    predict=unchanged,
    predict_training=predict_training,
    gives_up="every weight moves at one rate",
)
