"""Adafactor: the second moment of a matrix as what its rows and columns have on average; no first moment."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field

from hayless.core.cost import TrainShape
from hayless.core.dtypes import item_bytes
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged


class AdafactorConfig(MethodConfig):
    """Adaptive steps for one number a row and one a column of state; each step is a share of the weights' own size."""

    method: Literal["adafactor"] = "adafactor"
    learning_rate: float = Field(
        1e-2,
        gt=0,
        description="Peak relative step: the share of a weight's root mean square that an update moves it by.",
    )
    beta2_decay: float = Field(
        -0.8, le=0, description="The second moment keeps 1 − t^beta2_decay of what it was at update t (section 7.2)."
    )
    eps: float = Field(
        1e-15, gt=0, description="Least mean of squared gradients, and root of the least squared gradient divided by."
    )
    least_scale: float = Field(
        1e-3, gt=0, description="The least size of weights that steps are shares of (epsilon 2)."
    )
    clip_threshold: float = Field(1.0, ge=1, description="Largest root mean square of an update (section 6).")
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight that learning_rate takes away an update.")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="What weight_decay acts on: matrices alone, or vectors, norms and embeddings too."
    )


def state_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """A number a row and one a column in the parameter's dtype (of a vector, all), and a float32 that counts."""
    elements = math.prod(shape)
    factored = elements // shape[-1] + elements // shape[-2] if len(shape) > 1 else elements
    return factored * item_bytes(dtype) + 4


def scratch_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """The update of a parameter, whole."""
    return math.prod(shape) * item_bytes(dtype)


def move_launches(shape: tuple[int, ...]) -> int:
    """Operations of torch's for one parameter: as many as were counted."""
    return 22 if len(shape) > 1 else 13


def predict_training(shape: TrainShape, config: AdafactorConfig) -> TrainShape:
    """Training with Adafactor's state."""
    return replace(
        shape, state_bytes=state_bytes, scratch_bytes=scratch_bytes, move_launches=move_launches, move_passes=17
    )


METHOD = Method(
    name="adafactor",
    part=Part.OPTIMIZER,
    summary="Adaptive steps from a second moment by rows and columns; no first moment",
    config=AdafactorConfig,
    implementation="hayless.methods.optimizers.standard:Adafactor",
    predict=unchanged,
    predict_training=predict_training,
    gives_up="no momentum, and a second moment by rows and columns",
    paper=Paper(
        "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", "Shazeer and Stern", 2018, "1804.04235"
    ),
)
