"""LOMO's rule (Lv et al., 2023, algorithm 1): θ ← θ − α·g, one parameter at a time.

The order of operations is that of torch.optim.SGD, so that without clipping fp32 weights get the same bits. 16-bit
weights are moved in one kernel that computes in 32 bits and rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hayless.methods.common.decay import decay_groups
from hayless.methods.memory.lomo.config import LomoConfig
from hayless.train.slots import FusedOptimizer, Trainable


class Lomo:
    """Fills the optimizer slot."""

    fused = True

    @staticmethod
    def build(config: LomoConfig, parameters: Sequence[Trainable]) -> LomoOptimizer:
        """LOMO at its peak learning rate."""
        return LomoOptimizer(parameters, config)


class LomoOptimizer(FusedOptimizer):
    """Gradient descent that remembers nothing."""

    def __init__(self, parameters: Sequence[Trainable], config: LomoConfig) -> None:
        groups = decay_groups(parameters, config.weight_decay, config.decay)
        super().__init__(groups, {"lr": config.learning_rate})
        self._clip_value = config.clip_value

    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        """Clip by value, decay, move."""
        group = self.group_of(parameter)
        if self._clip_value is not None:
            gradient.clamp_(-self._clip_value, self._clip_value)
        if group["weight_decay"]:
            gradient.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(gradient, alpha=-group["lr"])
