"""Bottlenecks: small networks behind the sublayers of frozen blocks."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.bottleneck.config import BottleneckConfig, claims, predict

METHOD = Method(
    name="bottleneck",
    part=Part.TRANSFORM,
    summary="Train small networks behind the sublayers of each block; the base is frozen",
    config=BottleneckConfig,
    implementation="hayless.methods.adapters.bottleneck.transform:BottleneckAdapters",
    predict=predict,
    claims=claims,
    # A baseline: no user who asks what to do is sent here.
    ladder=lambda dims: (),
    paper=Paper("Parameter-Efficient Transfer Learning for NLP", "Houlsby et al.", 2019, "1902.00751"),
    peft_type="BOTTLENECK",
    unmerged="it is no linear function, and weights hold only those",
)
