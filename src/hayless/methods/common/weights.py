"""The weights that a method's targets name in a loaded model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Ledger, Row


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter of one layer: its row in the ledger, its module and that module's path."""

    row: Row
    path: str
    module: nn.Module

    @property
    def name(self) -> str:
        """Path and parameter, as `state_dict` calls it."""
        return f"{self.path}.{self.row.parameter}"

    @property
    def parameter(self) -> nn.Parameter:
        """The tensor. NotSupported where the module holds no such parameter (any more)."""
        found = self.module._parameters.get(self.row.parameter)
        if found is None:
            raise NotSupported(
                f"{self.name} is not an ordinary parameter: another method has packed it.",
                hint="Change values before weights are packed, and pack them once.",
            )
        return found


def plain_ledger(model: PreTrainedModel) -> Ledger:
    """The ledger of the model as its family builds it, whatever methods it has had."""
    return ledger_of(dims_of(model.config.to_dict()))


def weights_of(model: PreTrainedModel, rows: Iterable[Row]) -> list[Weight]:
    """The modules that hold `rows`, layer by layer. RequestError where the model has no such module."""
    found = []
    for row in rows:
        for layer in row.layers or (0,):
            path = row.module.replace("{layer}", str(layer))
            try:
                found.append(Weight(row, path, model.get_submodule(path)))
            except AttributeError:
                raise RequestError(
                    f"This {type(model).__name__} has no {path}.", hint=f"Leave {row.role.value!r} out of the targets."
                ) from None
    return found


def check_finite(weights: Iterable[Weight]) -> None:
    """Raise RequestError with the names of the first tensors that hold NaN or infinities."""
    bad = [weight.name for weight in weights if not torch.isfinite(weight.parameter).all()]
    if bad:
        raise RequestError(
            f"{len(bad)} tensors hold NaN or infinities: {', '.join(bad[:3])}{', …' if len(bad) > 3 else ''}.",
            hint="The checkpoint is damaged or its training diverged; start from a good one.",
        )
