"""A reward model: one score a text, trained so that people's preferred answer scores higher."""

from __future__ import annotations

from typing import Literal

from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged


class RewardConfig(MethodConfig):
    """No options: the loss is Bradley and Terry's."""

    method: Literal["reward"] = "reward"


METHOD = Method(
    name="reward",
    part=Part.OBJECTIVE,
    summary="Score the preferred of two answers higher (needs model.task: reward)",
    config=RewardConfig,
    implementation="hayless.methods.objectives.bradley_terry:Reward",
    predict=unchanged,
    paper=Paper(
        "Training language models to follow instructions with human feedback", "Ouyang et al.", 2022, "2203.02155"
    ),
)
