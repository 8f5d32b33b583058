"""LLM.int8(): 8-bit weights and inputs, summed in int32, with the input's columns of outliers in 16 bits."""

from __future__ import annotations

from hayless.core.method import Ecosystem, Method, Paper, Part
from hayless.methods.common.packed_rows import claims
from hayless.methods.quantize.int8 import bitsandbytes
from hayless.methods.quantize.int8.config import Int8Config
from hayless.methods.quantize.int8.form import ECOSYSTEM, predict

METHOD = Method(
    name="int8",
    part=Part.TRANSFORM,
    summary="LLM.int8(): products in 8-bit integers, outlier columns of the input in 16 bits",
    config=Int8Config,
    implementation="hayless.methods.quantize.int8.layer:INT8",
    predict=predict,
    claims=claims,
    ecosystems=(Ecosystem(ECOSYSTEM, "bitsandbytes", bitsandbytes.write, bitsandbytes.read),),
    paper=Paper(
        "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
        "Dettmers, Lewis, Belkada and Zettlemoyer",
        2022,
        "2208.07339",
    ),
)
