"""AWQ: integers of 2, 3, 4 or 8 bits, of weights whose important channels were scaled up first."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.common.packed_rows import claims
from hayless.methods.common.stages import predict
from hayless.methods.quantize.awq.config import AWQConfig

METHOD = Method(
    name="awq",
    part=Part.TRANSFORM,
    summary="Round weights to integers after scaling up the channels that text uses most",
    config=AWQConfig,
    implementation="hayless.methods.quantize.awq.transform:AWQ",
    predict=predict,
    claims=claims,
    needs=(Need.CALIBRATION,),
    # As for gptq: uniform stands for all three.
    ladder=lambda dims: [],
    paper=Paper(
        "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        "Lin et al.",
        2023,
        "2306.00978",
    ),
)
