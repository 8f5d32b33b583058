"""Modules that compose: several trained LoRA adapters become one."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.adapters.compose.config import ComposeConfig, claims, predict

METHOD = Method(
    name="compose",
    part=Part.TRANSFORM,
    summary="Make one LoRA adapter of several that were trained apart, without training",
    config=ComposeConfig,
    implementation="hayless.methods.adapters.compose.transform:Compose",
    predict=predict,
    claims=claims,
    needs=(Need.TRAINED_ADAPTER,),
    paper=Paper("Editing Models with Task Arithmetic", "Ilharco et al.", 2022, "2212.04089"),
)
