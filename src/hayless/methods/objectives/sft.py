"""Supervised fine-tuning: next-token prediction on the answers of examples, not on their instructions."""

from __future__ import annotations

from typing import Literal

from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged
from hayless.methods.objectives.packed import packed_rows


class SftConfig(MethodConfig):
    """No options: the data room masks the tokens of instructions."""

    method: Literal["sft"] = "sft"


METHOD = Method(
    name="sft",
    part=Part.OBJECTIVE,
    summary="Predict the answers of examples, given their instructions",
    config=SftConfig,
    implementation="hayless.methods.objectives.likelihood:Finetuning",
    predict=unchanged,
    predict_training=packed_rows,
    paper=Paper(
        "Training language models to follow instructions with human feedback", "Ouyang et al.", 2022, "2203.02155"
    ),
)
