"""Products of blocks in 8-bit floats while a model trains; weights, gradients and what is saved stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hayless.core.cost import TrainShape
from hayless.core.dims import ModelDims
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged


class Float8LinearsConfig(MethodConfig):
    """No options: every linear layer of a block, forward and for the gradient of its input. Not on every GPU.

    Products are rounded to 3 bits of mantissa, so losses differ from those of 16 bits. It saves time, not memory.
    """

    method: Literal["float8_linears"] = "float8_linears"


def predict_training(shape: TrainShape, config: Float8LinearsConfig) -> TrainShape:
    """Training whose blocks multiply 8-bit floats."""
    return replace(shape, float8=True)


def ladder(dims: ModelDims) -> list[Float8LinearsConfig]:
    """Not tried by the recommender: it gives up precision for a few percent of the time."""
    return []


METHOD = Method(
    name="float8_linears",
    part=Part.MEMORY,
    summary="Multiply 8-bit floats in blocks while training (compute capability 8.9 and later)",
    config=Float8LinearsConfig,
    implementation="hayless.methods.memory.eight_bits:Float8Linears",
    predict=unchanged,
    predict_training=predict_training,
    ladder=ladder,
    paper=Paper("FP8 Formats for Deep Learning", "Micikevicius et al.", 2022, "2209.05433"),
)
