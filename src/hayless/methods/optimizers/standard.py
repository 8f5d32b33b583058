"""AdamW, SGD and Adafactor: torch's own, with groups for what decays and what does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hayless.methods.common.decay import decay_groups
from hayless.methods.optimizers.adafactor import AdafactorConfig
from hayless.methods.optimizers.adamw import AdamWConfig
from hayless.methods.optimizers.sgd import SgdConfig
from hayless.train.slots import Trainable


class AdamW:
    """Fills the optimizer slot with torch.optim.AdamW: fused on GPUs, the plain loop on CPUs."""

    fused = False

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

    fused = False

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


class Adafactor:
    """Fills the optimizer slot with torch.optim.Adafactor, parameter by parameter."""

    fused = False

    @staticmethod
    def build(config: AdafactorConfig, parameters: Sequence[Trainable]) -> torch.optim.Adafactor:
        """Adafactor at its peak learning rate."""
        return torch.optim.Adafactor(
            decay_groups(parameters, config.weight_decay, config.decay),
            lr=config.learning_rate,
            beta2_decay=config.beta2_decay,
            eps=(config.eps, config.least_scale),
            d=config.clip_threshold,
            foreach=False,
        )
