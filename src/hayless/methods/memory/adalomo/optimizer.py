"""AdaLomo's rule, one parameter at a time and a matrix in chunks of rows, so that little exists in float32 at once.

A stack of experts is moved expert by expert: each is a matrix with its own second moment and its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hayless.methods.common.decay import decay_groups
from hayless.methods.memory.adalomo.config import AdaLomoConfig
from hayless.methods.memory.adalomo.predict import CHUNK_ELEMENTS
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
        if parameter.ndim < 2:
            self._move_vector(parameter, gradient, state["second"], beta, group)
            return
        width = parameter.shape[-2:]
        stacks = (parameter.view(-1, *width), gradient.view(-1, *width), state["rows"], state["columns"])
        for weight, part, rows, columns in zip(*stacks, strict=True):
            self._move_matrix(weight, part, rows, columns, beta, group)

    def _move_vector(
        self, weight: Tensor, gradient: Tensor, second: Tensor, beta: float, group: dict[str, Any]
    ) -> None:
        gradient = gradient.float()
        second.lerp_(gradient.square().add_(self._config.eps), 1 - beta)
        update = second.rsqrt().mul_(gradient)
        factor = self._begun(weight, _squared(update).sqrt(), group)
        weight.sub_(update.mul_(factor))

    def _move_matrix(
        self, weight: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, beta: float, group: dict[str, Any]
    ) -> None:
        """One matrix (R, C), its state (R,) and (C,), in three passes over its gradient: moments, norm, move."""
        totals = torch.zeros_like(columns)
        for piece in _pieces(gradient):
            squares = _copy(gradient[piece]).square_().add_(self._config.eps)
            rows[piece].lerp_(squares.mean(1), 1 - beta)
            totals += squares.sum(0)
            del squares  # before the next piece's exist
        columns.lerp_(totals.div_(len(gradient)), 1 - beta)
        by_row, by_column = (rows / rows.mean()).rsqrt_().unsqueeze(1), columns.rsqrt()

        def update(piece: slice) -> Tensor:
            return _copy(gradient[piece]).mul_(by_row[piece]).mul_(by_column)

        squared = torch.stack([_squared(update(piece)) for piece in _pieces(gradient)]).sum()
        factor = self._begun(weight, squared.sqrt(), group)
        for piece in _pieces(gradient):
            weight[piece].sub_(update(piece).mul_(factor))

    def _begun(self, weight: Tensor, norm: Tensor, group: dict[str, Any]) -> Tensor:
        """Decay the weight; what an update of this norm is to be multiplied by before it is taken from it."""
        root = math.sqrt(weight.numel())
        pieces = _pieces(weight) if weight.ndim == 2 else [slice(None)]
        size = torch.stack([_squared(weight[piece].float()) for piece in pieces]).sum().sqrt() / root
        step = size.clamp_(min=self._config.least_scale) * group["lr"]
        if group["weight_decay"]:
            weight.mul_(1 - step * group["weight_decay"])
        return step / (norm / root / self._config.clip_threshold).clamp_(min=1.0)


def _zeros(parameter: Tensor) -> dict[str, Tensor]:
    """The second moment before the first update."""
    if parameter.ndim < 2:
        return {"second": torch.zeros_like(parameter, dtype=torch.float32)}
    *stack, rows, columns = parameter.shape
    count = math.prod(stack)
    made = {"rows": (count, rows), "columns": (count, columns)}
    return {name: torch.zeros(shape, dtype=torch.float32, device=parameter.device) for name, shape in made.items()}


def _pieces(matrix: Tensor) -> Iterator[slice]:
    """Its rows, as many at a time as are computed at once."""
    count = max(1, CHUNK_ELEMENTS // matrix.shape[1])
    return (slice(start, start + count) for start in range(0, len(matrix), count))


def _squared(part: Tensor) -> Tensor:
    """The sum of squares of a contiguous float32 tensor, which takes no memory as a product with itself."""
    flat = part.reshape(-1)
    return torch.dot(flat, flat)


def _copy(part: Tensor) -> Tensor:
    return part.to(torch.float32, copy=True)
