"""AdamW, SGD and Adafactor: torch's own, with groups for what decays and what does not; AdamW on GPUs by
`hayless.kernels.adamw`, with torch's states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hayless.kernels.adamw import Options, Part, move, moved_alone
from hayless.methods.common.decay import decay_groups
from hayless.methods.optimizers.adafactor import AdafactorConfig
from hayless.methods.optimizers.adamw import AdamWConfig
from hayless.methods.optimizers.sgd import SgdConfig
from hayless.train.slots import ShrinkingOptimizer, Trainable


class AdamW:
    """Fills the optimizer slot: by kernels on GPUs, with torch's plain loop on CPUs."""

    fused = False

    @staticmethod
    def build(config: AdamWConfig, parameters: Sequence[Trainable]) -> torch.optim.Optimizer:
        """AdamW at its peak learning rate."""
        groups = decay_groups(parameters, config.weight_decay, config.decay)
        if all(item.tensor.is_cuda for item in parameters):
            return KernelAdamW(groups, config)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


class KernelAdamW(ShrinkingOptimizer):
    """AdamW by `hayless.kernels.adamw`. Remembers what torch's fused AdamW does, by the same names."""

    def __init__(self, groups: list[dict[str, Any]], config: AdamWConfig) -> None:
        # Of those that are fused torch restores `step` as float32 on the device.
        super().__init__(groups, {"lr": config.learning_rate, "fused": True})
        self._config = config

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            options = Options(group["lr"], group["weight_decay"], self._config.betas, self._config.eps)
            move([self._part(each) for each in group["params"] if each.grad is not None], options, self.factor)

    def _part(self, parameter: Tensor) -> Part:
        assert parameter.grad is not None, "only what has a gradient moves"
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        moments = state["exp_avg"], state["exp_avg_sq"]
        return Part(parameter, parameter.grad, *moments, state["step"], moved_alone(parameter))


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
