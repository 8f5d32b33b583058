"""A reward model: one score a text, trained so that people's preferred answer scores higher."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hayless.core.cost import TrainShape
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged


class RewardConfig(MethodConfig):
    """No options: the loss is Bradley and Terry's."""

    method: Literal["reward"] = "reward"


def predict_training(shape: TrainShape, config: RewardConfig) -> TrainShape:
    """Two answers a pair, one a row."""
    return replace(shape, batch=2 * shape.batch)


METHOD = Method(
    name="reward",
    part=Part.OBJECTIVE,
    summary="Score the preferred of two answers higher (needs model.task: reward)",
    config=RewardConfig,
    implementation="hayless.methods.objectives.bradley_terry:Reward",
    predict=unchanged,
    predict_training=predict_training,
    paper=Paper(
        "Training language models to follow instructions with human feedback", "Ouyang et al.", 2022, "2203.02155"
    ),
)
