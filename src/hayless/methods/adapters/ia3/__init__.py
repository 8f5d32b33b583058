"""IA³: keys, values and inner activations are scaled by trained vectors."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.ia3.config import Ia3Config, claims, predict

METHOD = Method(
    name="ia3",
    part=Part.TRANSFORM,
    summary="Scale keys, values and inner activations by trained vectors; the base is frozen",
    config=Ia3Config,
    implementation="hayless.methods.adapters.ia3.transform:Ia3",
    predict=predict,
    claims=claims,
    # A baseline: no user who asks what to do is sent here.
    ladder=lambda dims: (),
    paper=Paper(
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        "Liu et al.",
        2022,
        "2205.05638",
    ),
    peft_type="IA3",
)
