"""Pruning by magnitude: the smallest weights become zero."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.prune.magnitude.config import MagnitudeConfig, claims
from hayless.methods.prune.magnitude.predict import predict

METHOD = Method(
    name="magnitude",
    part=Part.TRANSFORM,
    summary="Set the smallest weights to zero, and keep them there",
    config=MagnitudeConfig,
    implementation="hayless.methods.prune.magnitude.transform:Magnitude",
    predict=predict,
    claims=claims,
    paper=Paper(
        "Learning both Weights and Connections for Efficient Neural Networks", "Han et al.", 2015, "1506.02626"
    ),
)
