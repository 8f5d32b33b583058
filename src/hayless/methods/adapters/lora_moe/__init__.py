"""Mixtures of LoRAs: several thin products beside each matrix under a gate, and one beside each expert of a stack."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.lora_moe.config import LoraMoeConfig, claims, predict

METHOD = Method(
    name="lora_moe",
    part=Part.TRANSFORM,
    summary="Train several thin products beside frozen weights, mixed by a gate; one for each expert of a stack",
    config=LoraMoeConfig,
    implementation="hayless.methods.adapters.lora_moe.transform:LoraMoe",
    predict=predict,
    claims=claims,
    # A baseline: no user who asks what to do is sent here.
    ladder=lambda dims: (),
    paper=Paper(
        "Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for Instruction Tuning",
        "Zadouri et al.",
        2023,
        "2309.05444",
    ),
    peft_type="LORA_MOE",
)
