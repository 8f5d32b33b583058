"""LayerSkip's training: later layers are dropped more often, and earlier ones learn to speak for the whole model."""

from __future__ import annotations

from dataclasses import replace

from hayless.core.cost import TrainShape
from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.objectives.layerskip.config import LayerSkipConfig
from hayless.methods.objectives.packed import packed_rows


def predict_training(shape: TrainShape, config: LayerSkipConfig) -> TrainShape:
    """The heads of the update that has most of them. What dropping layers takes is not predicted."""
    every = config.every if config.curriculum == "rotational" else 1
    shape = packed_rows(shape, config)
    if config.exits and config.early_loss:
        turns = [tuple(layer for layer in config.exits if layer % every == turn) for turn in range(every)]
        return replace(shape, exits=max(turns, key=lambda turn: len(turn)))
    return replace(shape, exit_every=every if config.early_loss else 0)


METHOD = Method(
    name="layerskip",
    part=Part.OBJECTIVE,
    summary="Predict the next token from early layers too, while later ones are dropped at random",
    config=LayerSkipConfig,
    implementation="hayless.methods.objectives.layerskip.loss:LayerSkip",
    predict=unchanged,
    predict_training=predict_training,
    paper=Paper(
        "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding", "Elhoushi et al.", 2024, "2404.16710"
    ),
)
