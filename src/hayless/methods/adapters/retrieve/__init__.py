"""Modules that are found: a library's nearest ones to a task's examples, composed."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.adapters.retrieve.config import RetrieveConfig, claims, predict

METHOD = Method(
    name="retrieve",
    part=Part.TRANSFORM,
    summary="Find the modules of a library that are nearest to a task's examples, and compose them",
    config=RetrieveConfig,
    implementation="hayless.methods.adapters.retrieve.transform:Retrieve",
    predict=predict,
    claims=claims,
    needs=(Need.TRAINED_ADAPTER,),
    paper=Paper(
        "LoraRetriever: Input-Aware LoRA Retrieval and Composition for Mixed Tasks in the Wild",
        "Zhao et al.",
        2024,
        "2402.09997",
    ),
)
