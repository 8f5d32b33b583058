"""AdaLomo's move of a parameter and its second moment, in place (`hayless.methods.memory.adalomo` has the formulas).

By kernels on GPUs that have Triton, else in plain PyTorch, a matrix in chunks of rows, so that little exists in float32
at once. Shapes: r rows, c columns, n elements of a vector; second moments are float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from hayless.kernels.adalomo_sizes import CHUNK_ELEMENTS


class Step(NamedTuple):
    """An update: what the second moment keeps, the learning rate, and the options of the method."""

    beta: float
    rate: float
    decay: float
    eps: float
    least_scale: float
    clip_threshold: float


def move_matrix(weight: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, step: Step) -> None:
    """Move `weight` (r, c), contiguous, by `gradient`, and its second moment, `rows` (r,) and `columns` (c,)."""
    _by(weight).move_matrix(weight, gradient.contiguous(), rows, columns, step)


def move_vector(weight: Tensor, gradient: Tensor, second: Tensor, step: Step) -> None:
    """Move `weight` (n,), contiguous, by `gradient`, and its second moment (n,)."""
    _by(weight).move_vector(weight, gradient.contiguous(), second, step)


def _by(weight: Tensor) -> type[Reference] | ModuleType:
    """Who computes: the kernels on GPUs that have Triton, else plain PyTorch."""
    if weight.is_cuda and weight.dtype is not torch.float64:
        try:
            from hayless.kernels import adalomo_kernels
        except ImportError:
            return Reference
        return adalomo_kernels
    return Reference


class Reference:
    """What `hayless.kernels.adalomo_kernels` computes, in plain PyTorch and in float64 too."""

    @staticmethod
    def move_vector(weight: Tensor, gradient: Tensor, second: Tensor, step: Step) -> None:
        """A vector, which has its second moment whole."""
        gradient = gradient.float()
        second.lerp_(gradient.square().add_(step.eps), 1 - step.beta)
        update = second.rsqrt().mul_(gradient)
        factor = _begun(weight, _squared(update).sqrt(), step)
        weight.sub_(update.mul_(factor))

    @staticmethod
    def move_matrix(weight: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, step: Step) -> None:
        """A matrix, in three passes over its gradient: moments, norm, move."""
        totals = torch.zeros_like(columns)
        for piece in _pieces(gradient):
            squares = _copy(gradient[piece]).square_().add_(step.eps)
            rows[piece].lerp_(squares.mean(1), 1 - step.beta)
            totals += squares.sum(0)
            del squares  # before the next piece's exist
        columns.lerp_(totals.div_(len(gradient)), 1 - step.beta)
        by_row, by_column = (rows / rows.mean()).rsqrt_().unsqueeze(1), columns.rsqrt()

        def update(piece: slice) -> Tensor:
            return _copy(gradient[piece]).mul_(by_row[piece]).mul_(by_column)

        squared = torch.stack([_squared(update(piece)) for piece in _pieces(gradient)]).sum()
        factor = _begun(weight, squared.sqrt(), step)
        for piece in _pieces(gradient):
            weight[piece].sub_(update(piece).mul_(factor))


def _begun(weight: Tensor, norm: Tensor, step: Step) -> Tensor:
    """Decay the weight; what an update of this norm is to be multiplied by before it is taken from it."""
    root = math.sqrt(weight.numel())
    pieces = _pieces(weight) if weight.ndim == 2 else [slice(None)]
    size = torch.stack([_squared(weight[piece].float()) for piece in pieces]).sum().sqrt() / root
    relative = size.clamp_(min=step.least_scale) * step.rate
    if step.decay:
        weight.mul_(1 - relative * step.decay)
    return relative / (norm / root / step.clip_threshold).clamp_(min=1.0)


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
