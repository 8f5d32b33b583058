"""GPTQ: integers of 2, 3, 4 or 8 bits that make up for each other's rounding on calibration text."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.common.packed_rows import claims
from hayless.methods.common.stages import predict
from hayless.methods.quantize.gptq.config import GPTQConfig

METHOD = Method(
    name="gptq",
    part=Part.TRANSFORM,
    summary="Round weights to integers, column by column, by what text makes of them",
    config=GPTQConfig,
    implementation="hayless.methods.quantize.gptq.transform:GPTQ",
    predict=predict,
    claims=claims,
    needs=(Need.CALIBRATION,),
    # In bytes and in time it is uniform, which the recommender knows, and it needs text that a request may not have.
    ladder=lambda dims: [],
    paper=Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        "Frantar et al.",
        2022,
        "2210.17323",
    ),
)
