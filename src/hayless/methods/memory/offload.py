"""What enters checkpointed blocks lies in the host's memory until they run again; copies run beside the work."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hayless.core.cost import TrainShape
from hayless.core.errors import RequestError
from hayless.core.method import Method, MethodConfig, Part, unchanged


class OffloadConfig(MethodConfig):
    """No options: every checkpointed block's input is moved. On a CPU there is nowhere to move it to."""

    method: Literal["offload"] = "offload"


def predict_training(shape: TrainShape, config: OffloadConfig) -> TrainShape:
    """Training whose checkpoints lie in the host's memory. RequestError where nothing is checkpointed before."""
    if not shape.checkpoint_every:
        raise RequestError(
            "offload moves what enters checkpointed blocks, and none is checkpointed before it.",
            hint="Put checkpointing before it: memory: [checkpointing, offload].",
        )
    return replace(shape, offload=True)


METHOD = Method(
    name="offload",
    part=Part.MEMORY,
    summary="Keep what enters checkpointed blocks in the host's memory",
    config=OffloadConfig,
    implementation="hayless.methods.memory.host:Offload",
    predict=unchanged,
    predict_training=predict_training,
    upon="checkpointing",
)
