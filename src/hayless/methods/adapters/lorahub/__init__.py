"""LoraHub: how much of each module a new task needs, searched without gradients."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.adapters.lorahub.config import LoraHubConfig, claims, predict

METHOD = Method(
    name="lorahub",
    part=Part.TRANSFORM,
    summary="Search the weights of trained modules by a few examples of a task, without gradients",
    config=LoraHubConfig,
    implementation="hayless.methods.adapters.lorahub.transform:LoraHub",
    predict=predict,
    claims=claims,
    needs=(Need.TRAINED_ADAPTER,),
    paper=Paper(
        "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", "Huang et al.", 2023, "2307.13269"
    ),
)
