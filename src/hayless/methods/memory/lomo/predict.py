"""What LOMO changes about training: no state, and gradients that go as soon as they are used."""

from __future__ import annotations

from dataclasses import replace

from hayless.core.cost import TrainShape, alone, no_state
from hayless.methods.memory.lomo.config import LomoConfig


def predict_training(shape: TrainShape, config: LomoConfig) -> TrainShape:
    """Training with updates in the backward pass. RequestError for several micro-batches an update."""
    return replace(shape, state_bytes=no_state, scratch_bytes=no_state, move_launches=alone, fused=True)
