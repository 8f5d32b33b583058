"""Parameter groups: which of them weight decay acts on, an option that optimizers share, and how fast they learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from hayless.train.slots import Kind, Trainable

Decay = Literal["matrices", "all"]


def decay_groups(parameters: Sequence[Trainable], weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """torch's parameter groups: those that decay before those that do not, those of one `rate` together.

    The updater multiplies the learning rate by a group's `rate`. Groups that learn at the rate itself come first.
    """
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for item in parameters:
        stays = decay != "all" and item.kind is not Kind.MATRIX
        groups.setdefault((item.rate != 1.0, item.rate, float(stays)), []).append(item.tensor)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[2] else weight_decay, "rate": key[1]}
        for key in sorted(groups)
    ]
