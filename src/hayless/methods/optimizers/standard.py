"""AdamW and SGD: torch's own, with groups for what decays and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hayless.methods.optimizers.adamw import AdamWConfig
from hayless.methods.optimizers.sgd import SgdConfig
from hayless.train.slots import Kind, Trainable


class AdamW:
    """Fills the optimizer slot with torch.optim.AdamW: fused on GPUs, the plain loop on CPUs."""

    @staticmethod
    def build(config: AdamWConfig, parameters: Sequence[Trainable]) -> torch.optim.AdamW:
        """AdamW at its peak learning rate."""
        return torch.optim.AdamW(
            decay_groups(parameters, config.weight_decay, config.decay),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=True if all(item.tensor.is_cuda for item in parameters) else None,
        )


class Sgd:
    """Fills the optimizer slot with torch.optim.SGD."""

    @staticmethod
    def build(config: SgdConfig, parameters: Sequence[Trainable]) -> torch.optim.SGD:
        """SGD at its peak learning rate."""
        return torch.optim.SGD(
            decay_groups(parameters, config.weight_decay, config.decay),
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fused=True if all(item.tensor.is_cuda for item in parameters) else None,
        )


def decay_groups(
    parameters: Sequence[Trainable], weight_decay: float, decay: Literal["matrices", "all"]
) -> list[dict[str, Any]]:
    """torch's parameter groups: those that decay and those that do not; a group without parameters is left out."""
    decays: list[Tensor] = []
    stays: list[Tensor] = []
    for item in parameters:
        (decays if decay == "all" or item.kind is Kind.MATRIX else stays).append(item.tensor)
    groups = ({"params": decays, "weight_decay": weight_decay}, {"params": stays, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
