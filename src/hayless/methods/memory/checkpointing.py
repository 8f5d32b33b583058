"""Activation checkpointing: keep what enters a block, and compute the block again when its gradients are needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from hayless.core.cost import TrainShape
from hayless.core.dims import ModelDims
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged
from hayless.core.tape import Kept


class CheckpointingConfig(MethodConfig):
    """Saves a block's activations for the price of its second forward pass: about a third more time in all."""

    method: Literal["checkpointing"] = "checkpointing"
    every: int = Field(
        1, ge=1, description="Checkpoint every n-th block: 1 saves most memory, 2 half of it for half the time."
    )
    blocks: int | None = Field(
        None, ge=1, description="Checkpoint only so many of them, the first ones; the last are done with soonest."
    )
    keep: Kept = Field(
        "nothing",
        description="What a checkpointed block keeps beside its inputs: the results of attention, or those of all"
        " products with weights too (products), so that only what is cheap is computed again.",
    )


def predict_training(shape: TrainShape, config: CheckpointingConfig) -> TrainShape:
    """Training that computes blocks again."""
    return replace(
        shape,
        checkpoint_every=config.every,
        checkpoint_blocks=config.blocks or 0,
        checkpoint_keeps=config.keep,
    )


def ladder(dims: ModelDims) -> list[CheckpointingConfig]:
    """One block, two, and so on to all of them."""
    blocks = dims.num_layers + dims.encoder_layers
    return [CheckpointingConfig(blocks=count) for count in range(1, blocks)] + [CheckpointingConfig()]


METHOD = Method(
    name="checkpointing",
    part=Part.MEMORY,
    summary="Compute blocks again in the backward pass instead of keeping their activations",
    config=CheckpointingConfig,
    implementation="hayless.methods.memory.recompute:Checkpointing",
    predict=unchanged,
    predict_training=predict_training,
    ladder=ladder,
    paper=Paper("Training Deep Nets with Sublinear Memory Cost", "Chen et al.", 2016, "1604.06174"),
)
