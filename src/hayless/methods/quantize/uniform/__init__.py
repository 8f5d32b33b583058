"""Uniform quantization: weights become integers of 2, 3, 4 or 8 bits, rounded to the nearest."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.common.packed_rows import claims
from hayless.methods.quantize.uniform.config import UniformConfig
from hayless.methods.quantize.uniform.files import LAYOUTS
from hayless.methods.quantize.uniform.form import predict

METHOD = Method(
    name="uniform",
    part=Part.TRANSFORM,
    summary="Round weights to integers of 2, 3, 4 or 8 bits",
    config=UniformConfig,
    implementation="hayless.methods.quantize.uniform.transform:UNIFORM",
    predict=predict,
    ecosystems=LAYOUTS,
    claims=claims,
    ladder=lambda dims: [UniformConfig(bits=8, group_size="row"), UniformConfig(bits=4)],
    paper=Paper(
        "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        "Jacob et al.",
        2018,
        "1712.05877",
    ),
)
