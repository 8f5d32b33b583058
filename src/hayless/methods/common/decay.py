"""Which parameters weight decay acts on: an option that optimizers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from hayless.train.slots import Kind, Trainable

Decay = Literal["matrices", "all"]


def decay_groups(parameters: Sequence[Trainable], weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """torch's parameter groups: those that decay and those that do not; a group without parameters is left out."""
    decays: list[Tensor] = []
    stays: list[Tensor] = []
    for item in parameters:
        (decays if decay == "all" or item.kind is Kind.MATRIX else stays).append(item.tensor)
    groups = ({"params": decays, "weight_decay": weight_decay}, {"params": stays, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
