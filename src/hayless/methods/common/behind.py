"""Hooks by which something is added to what a sublayer gives, of that or of what the sublayer was given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hayless.core.beside import entrance
from hayless.core.ledger import Ledger
from hayless.methods.common.adapting import modules_of
from hayless.methods.common.sites import Target

_ENTERING = "sublayer_input"


def add_behind(last: Any, first: Any, name: str, *, parallel: bool) -> list[RemovableHandle]:
    """Add what the part `name` of a sublayer's last module gives to the sublayer's output, in its dtype. The part reads
    that output, or in parallel what the sublayer's first module is given."""

    def behind(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own = getattr(module, name)
        return output + own(module.__dict__.pop(_ENTERING) if parallel else output).to(output.dtype)

    handles = [last.register_forward_hook(behind)]
    if parallel:
        handles.append(first.register_forward_pre_hook(_Note(last)))
    return handles


def sublayer_ends(
    model: PreTrainedModel, ledger: Ledger, target: Target, *, parallel: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Of each sublayer that ends in a target: the path of its last module, that module, and the first one if something
    stands in parallel (else the last)."""
    begins = entrance(ledger, target.row) if parallel else target.row.module
    for number, (path, module, _) in zip(target.layers or (0,), modules_of(model, [target]), strict=True):
        yield path, module, model.get_submodule(begins.replace("{layer}", str(number)))


class _Note:
    """A hook before the first module of a sublayer: the last one finds there what the sublayer was given.

    It is taken from the dictionary of attributes, since it is no part of the module.
    """

    def __init__(self, last: Any) -> None:
        self.last = last

    def __call__(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self.last.__dict__[_ENTERING] = inputs[0]
