"""AdamW that keeps its moments in 8 bits: the same bits on every machine of a kind, and states that are ordinary
tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.kernels.adamw8bit import Moment, Step, by_kernel, move
from hayless.kernels.blockwise import quantize
from hayless.methods.common.decay import decay_groups
from hayless.methods.optimizers.adamw8bit.config import AdamW8bitConfig
from hayless.methods.optimizers.adamw8bit.predict import CHUNK_ELEMENTS
from hayless.train.slots import Trainable

_SIGNED = {"first": True, "second": False}


class AdamW8bit:
    """Fills the optimizer slot."""

    fused = False

    @staticmethod
    def build(config: AdamW8bitConfig, parameters: Sequence[Trainable]) -> AdamW8bitOptimizer:
        """AdamW at its peak learning rate."""
        return AdamW8bitOptimizer(parameters, config)


class AdamW8bitOptimizer(torch.optim.Optimizer):
    """Remembers `first` and `second`, codes with `_scales` beside them (float32 of small tensors), and counts steps."""

    def __init__(self, parameters: Sequence[Trainable], config: AdamW8bitConfig) -> None:
        for item in parameters:
            if not item.tensor.is_contiguous():
                raise NotSupported(
                    f"{item.name} is not contiguous in memory, which adamw8bit needs.", hint="Use adamw."
                )
        super().__init__(decay_groups(parameters, config.weight_decay, config.decay), {"lr": config.learning_rate})
        self._config = config

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        config, state, elements = self._config, self.state[parameter], parameter.numel()
        if not state:
            state["step"] = 0
            state |= self._zeros(parameter)
        state["step"] += 1
        step = Step(state["step"], group["lr"], group["weight_decay"], config.betas, config.eps)
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        size = elements if by_kernel(parameter) else max(1, CHUNK_ELEMENTS // config.block_size) * config.block_size
        for start in range(0, elements, size):
            part = slice(start, min(start + size, elements))
            first, second = (self._part(state, name, part) for name in _SIGNED)
            move(weights[part], gradients[part], first, second, step, config.block_size)

    def _part(self, state: dict[str, Any], name: str, part: slice) -> Moment:
        """Part of a moment; that of a small tensor has no scales."""
        block, scales = self._config.block_size, state.get(f"{name}_scales")
        return Moment(
            state[name][part], None if scales is None else scales[part.start // block : -(-part.stop // block)]
        )

    def _zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """Both moments before the first update."""
        elements, block = parameter.numel(), self._config.block_size
        if elements < self._config.least_elements:
            return {name: torch.zeros(elements, dtype=torch.float32, device=parameter.device) for name in _SIGNED}
        none, codes, scales = torch.zeros(1), {}, {}
        for name, signed in _SIGNED.items():
            zero = int(quantize(none, signed, 1)[0])
            codes[name] = torch.full((elements,), zero, dtype=torch.uint8, device=parameter.device)
            scales[f"{name}_scales"] = torch.zeros(-(-elements // block), device=parameter.device)
        return codes | scales
