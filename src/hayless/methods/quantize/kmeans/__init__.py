"""Palettization: weights become indices of 1 to 8 bits into codebooks found by k-means."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.common.packed_rows import claims
from hayless.methods.quantize.kmeans.config import KMeansConfig
from hayless.methods.quantize.kmeans.form import predict

METHOD = Method(
    name="kmeans",
    part=Part.TRANSFORM,
    summary="Pack weights as indices of 1 to 8 bits into k-means codebooks",
    config=KMeansConfig,
    implementation="hayless.methods.quantize.kmeans.palette:KMEANS",
    predict=predict,
    claims=claims,
    needs_by=lambda config: (Need.CALIBRATION,) if config.importance else (),
    ladder=lambda dims: [KMeansConfig(bits=8), KMeansConfig(bits=4)],
    paper=Paper(
        "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding",
        "Han, Mao and Dally",
        2015,
        "1510.00149",
    ),
)
