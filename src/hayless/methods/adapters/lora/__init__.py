"""LoRA: a trained product of two thin matrices beside frozen weights."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.lora.config import LoraConfig, claims, rate
from hayless.methods.adapters.lora.predict import predict

METHOD = Method(
    name="lora",
    part=Part.TRANSFORM,
    summary="Train thin matrices beside frozen weights",
    config=LoraConfig,
    implementation="hayless.methods.adapters.lora.transform:Lora",
    predict=predict,
    claims=claims,
    rate=rate,
    paper=Paper("LoRA: Low-Rank Adaptation of Large Language Models", "Hu et al.", 2021, "2106.09685"),
    peft_type="LORA",
)
