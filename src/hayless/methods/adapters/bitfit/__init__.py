"""BitFit: only the biases are trained."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.bitfit.config import BitFitConfig, claims, predict

METHOD = Method(
    name="bitfit",
    part=Part.TRANSFORM,
    summary="Train the biases alone; everything else is frozen",
    config=BitFitConfig,
    implementation="hayless.methods.adapters.bitfit.transform:BitFit",
    predict=predict,
    claims=claims,
    # A baseline: no user who asks what to do is sent here.
    ladder=lambda dims: (),
    paper=Paper(
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        "Ben Zaken, Ravfogel and Goldberg",
        2021,
        "2106.10199",
    ),
)
