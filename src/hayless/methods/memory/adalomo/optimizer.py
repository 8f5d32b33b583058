"""AdaLomo's rule, one parameter at a time.

A stack of experts is moved expert by expert: each is a matrix with its own second moment and its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hayless.kernels.adalomo import Step, move_matrix, move_vector
from hayless.methods.common.decay import decay_groups
from hayless.methods.memory.adalomo.config import AdaLomoConfig
from hayless.train.slots import FusedOptimizer, Trainable


class AdaLomo:
    """Fills the optimizer slot."""

    fused = True

    @staticmethod
    def build(config: AdaLomoConfig, parameters: Sequence[Trainable]) -> AdaLomoOptimizer:
        """AdaLomo at its peak learning rate."""
        return AdaLomoOptimizer(parameters, config)


class AdaLomoOptimizer(FusedOptimizer):
    """Remembers, in float32, squared gradients by row and by column (of a vector by element), and counts updates."""

    def __init__(self, parameters: Sequence[Trainable], config: AdaLomoConfig) -> None:
        groups = decay_groups(parameters, config.weight_decay, config.decay)
        super().__init__(groups, {"lr": config.learning_rate})
        self._config = config

    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take the gradient into the second moment, and move by it."""
        config, group, state = self._config, self.group_of(parameter), self.state[parameter]
        if config.clip_value is not None:
            gradient.clamp_(-config.clip_value, config.clip_value)
        if not state:
            state["step"] = 0
            state |= _zeros(parameter)
        state["step"] += 1
        beta = 1.0 - state["step"] ** config.beta2_decay
        options = (group["lr"], group["weight_decay"], config.eps, config.least_scale, config.clip_threshold)
        step = Step(beta, *options)
        if parameter.ndim < 2:
            move_vector(parameter, gradient, state["second"], step)
            return
        shape = parameter.shape[-2:]
        stacks = (parameter.view(-1, *shape), gradient.view(-1, *shape), state["rows"], state["columns"])
        for weight, part, rows, columns in zip(*stacks, strict=True):
            move_matrix(weight, part, rows, columns, step)


def _zeros(parameter: Tensor) -> dict[str, Tensor]:
    """The second moment before the first update."""
    if parameter.ndim < 2:
        return {"second": torch.zeros_like(parameter, dtype=torch.float32)}
    *stack, rows, columns = parameter.shape
    count = math.prod(stack)
    made = {"rows": (count, rows), "columns": (count, columns)}
    return {name: torch.zeros(shape, dtype=torch.float32, device=parameter.device) for name, shape in made.items()}
