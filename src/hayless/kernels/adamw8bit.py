"""AdamW's move of part of a parameter whose moments have 8 bits, in place: by one kernel on GPUs that have Triton, else
in plain PyTorch. Shapes: n elements, b of a block; the first part of a parameter begins a block.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from hayless.kernels.blockwise import dequantize, quantize


class Moment(NamedTuple):
    """A moment: codes (n,) uint8 with scales (⌈n / b⌉,) float32; without scales its values, (n,) float32."""

    values: Tensor
    scales: Tensor | None


class Step(NamedTuple):
    """An update: its number from 1, the learning rate, and the options of the method."""

    number: int
    rate: float
    decay: float
    betas: tuple[float, float]
    eps: float


def by_kernel(weight: Tensor) -> bool:
    """Whether a kernel moves it, however large it is; plain PyTorch needs float32 copies of a part."""
    return weight.is_cuda and weight.dtype is not torch.float64 and find_spec("triton") is not None


def move(weight: Tensor, gradient: Tensor, first: Moment, second: Moment, step: Step, block: int) -> None:
    """Move `weight` (n,) by `gradient`, both contiguous, and both moments."""
    if by_kernel(weight):
        from hayless.kernels.adamw8bit_kernels import move as compute
    else:
        compute = move_reference
    compute(weight, gradient, first, second, step, block)


def move_reference(weight: Tensor, gradient: Tensor, first: Moment, second: Moment, step: Step, block: int) -> None:
    """The same in plain PyTorch, in the order of operations of torch.optim.AdamW."""
    one, two = step.betas
    gradient = gradient.float()
    mean = _read(first, True, block).lerp_(gradient, 1 - one)
    square = _read(second, False, block).mul_(two).addcmul_(gradient, gradient, value=1 - two)
    divisor = (square.sqrt() / math.sqrt(1 - two**step.number)).add_(step.eps)
    moved = weight.float()
    moved.mul_(1 - step.rate * step.decay)
    moved.addcdiv_(mean, divisor, value=-step.rate / (1 - one**step.number))
    if moved is not weight:
        weight.copy_(moved)
    del gradient, divisor, moved
    _write(first, mean, True, block)
    _write(second, square, False, block)


def _read(moment: Moment, signed: bool, block: int) -> Tensor:
    """As float32; without scales the moment itself."""
    if moment.scales is None:
        return moment.values
    return dequantize(moment.values, moment.scales, signed, block)


def _write(moment: Moment, values: Tensor, signed: bool, block: int) -> None:
    """Round to codes; without scales the moment was changed where it lies."""
    if moment.scales is not None:
        codes, scales = quantize(values, signed, block)
        moment.values.copy_(codes)
        moment.scales.copy_(scales)
