"""8-bit floats: weights and inputs as e4m3, with a scale for each output channel and each token."""

from __future__ import annotations

from hayless.core.method import Ecosystem, Method, Paper, Part
from hayless.methods.common.packed_rows import claims
from hayless.methods.quantize.fp8 import compressed_tensors
from hayless.methods.quantize.fp8.config import Fp8Config
from hayless.methods.quantize.fp8.form import ECOSYSTEM, predict

METHOD = Method(
    name="fp8",
    part=Part.TRANSFORM,
    summary="Products in 8-bit floats (e4m3); GPUs of compute capability 8.9 and later have units for them",
    config=Fp8Config,
    implementation="hayless.methods.quantize.fp8.layer:FP8",
    predict=predict,
    claims=claims,
    ecosystems=(Ecosystem(ECOSYSTEM, "compressed-tensors", compressed_tensors.write, compressed_tensors.read),),
    paper=Paper("FP8 Formats for Deep Learning", "Micikevicius et al.", 2022, "2209.05433"),
)
