"""Zeros that training leaves alone: the gradient of a weight that is zero is zero.

With a zero gradient every element-wise optimizer leaves a zero where it is: Adam's moments stay zero, and weight decay
takes a share of nothing. (An optimizer that mixes the elements of a matrix, such as Muon, would move it.)

Nothing is stored: a weight is masked where it is zero when its gradient arrives. So the zeros of a loaded file are
enough, and the mask follows the weight through changes of dtype and device. The hook sits on the model and gives each
parameter its mask at the first forward pass that may train, because parameters are replaced on the way there (by
loading, by copying, by being unfrozen).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

_MASKED = "_hayless_zeros_frozen"


def freeze_zeros(model: nn.Module, names: Iterable[tuple[str, str]]) -> None:
    """From now on the zeros of these parameters, (module path, parameter name), receive no gradient."""
    model.register_forward_pre_hook(partial(_mask, names=tuple(names)))


def _mask(model: nn.Module, inputs: object, *, names: tuple[tuple[str, str], ...]) -> None:
    if not torch.is_grad_enabled():
        return
    for path, name in names:
        # Absent once a later method has packed it.
        weight = model.get_submodule(path)._parameters.get(name)
        if weight is not None and weight.requires_grad and not hasattr(weight, _MASKED):
            weight.register_hook(partial(_without_zeros, weakref.ref(weight)))
            setattr(weight, _MASKED, True)


def _without_zeros(weight: weakref.ref[Tensor], gradient: Tensor) -> Tensor:
    found = weight()
    return gradient if found is None else gradient.masked_fill(found == 0, 0)
