"""What is inside a loaded model, role by role, beside what the ledger predicted.

Tensors are found by the names the ledger gives them, so a prediction that is wrong names its role, and a tensor that no
row explains is listed by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.compose import predict
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Ledger, Row
from hayless.core.measurement import Measurement
from hayless.model.transform import record


@dataclass(frozen=True, slots=True)
class RoleWeights:
    """All parameters of one role. Elements are logical (a packed matrix counts its weights), bytes are held in memory;
    a head tied to the embedding has none of its own.

    Mean, standard deviation, share of zeros and largest |w| are of the finite logical weights; None where no weight
    can be read as a number (packed by a method whose modules do not show their weights). `not_finite` counts NaN and
    infinities.
    """

    role: str
    elements: int
    bytes: int
    predicted_elements: int
    predicted_bytes: int
    mean: float | None
    std: float | None
    zeros: float | None
    largest: float | None
    not_finite: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The table, one row a role in the ledger's order, and the names of tensors that no row of the ledger explains."""

    roles: tuple[RoleWeights, ...]
    unexplained: tuple[str, ...]


def inspect_weights(model: PreTrainedModel) -> Inspection:
    """Look at every parameter (and saved buffer) of `model`. NotSupported for a family without a ledger."""
    ledger = ledger_of_model(model)
    tensors = _distinct(model)
    found: dict[str, _Figures] = {}
    explained: set[str] = set()
    for row in ledger.rows:
        figures = found.setdefault(row.role.value, _Figures())
        figures.predicted_elements += row.elements
        figures.predicted_bytes += row.bytes
        if row.tied_to:
            continue
        for layer in row.layers or (0,):
            names = [stored.name.replace("{layer}", str(layer)) for stored in row.held]
            present = [name for name in names if name in tensors]
            explained.update(present)
            figures.bytes += sum(tensors[name].nbytes for name in present)
            if len(present) == len(names):
                figures.add(row, _values(model, row, layer, tensors))
    roles = tuple(figures.table_row(role) for role, figures in found.items())
    return Inspection(roles, tuple(name for name in tensors if name not in explained))


def parameter_rows(model: PreTrainedModel) -> list[Measurement]:
    """How many parameters a model has, and where some are zero how many are not."""
    roles = inspect_weights(model).roles
    total = sum(role.elements for role in roles)
    zeros = sum(round(role.elements * role.zeros) for role in roles if role.zeros)
    rows = [Measurement(name="parameters", unit="parameters", value=total)]
    if zeros:
        rows.append(Measurement(name="nonzero_parameters", unit="parameters", value=total - zeros))
    return rows


def ledger_of_model(model: PreTrainedModel) -> Ledger:
    """The ledger predicted for a loaded model: its family's, rewritten by the transforms it has had."""
    dims = dims_of(model.config.to_dict()).with_dtype(str(model.dtype).removeprefix("torch."))
    return predict(ledger_of(dims), record(model))


class _Figures:
    """Sums over the tensors of one role."""

    def __init__(self) -> None:
        self.elements = self.bytes = self.predicted_elements = self.predicted_bytes = 0
        self._finite = self._zeros = self._not_finite = 0
        self._sum = self._squares = self._largest = 0.0

    def add(self, row: Row, values: Tensor | None) -> None:
        """Count one layer's parameter, and its values where they can be read."""
        self.elements += math.prod(row.shape) if values is None else values.numel()
        if values is None:
            return
        values = values.detach().float()
        finite = values.isfinite()
        count = int(finite.sum())
        if count < values.numel():
            self._not_finite += values.numel() - count
            values = values[finite]
        if count:
            self._finite += count
            self._zeros += int((values == 0).sum())
            self._sum += float(values.sum(dtype=torch.float64))
            self._squares += float(values.square().sum(dtype=torch.float64))
            self._largest = max(self._largest, float(values.abs().max()))

    def table_row(self, role: str) -> RoleWeights:
        """The sums as a row of the table."""
        count = self._finite
        mean = self._sum / count if count else None
        return RoleWeights(
            role=role,
            elements=self.elements,
            bytes=self.bytes,
            predicted_elements=self.predicted_elements,
            predicted_bytes=self.predicted_bytes,
            mean=mean,
            std=math.sqrt(max(0.0, self._squares / count - mean * mean)) if mean is not None else None,
            zeros=self._zeros / count if count else None,
            largest=self._largest if count else None,
            not_finite=self._not_finite,
        )


def _distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; storage that several names share is kept under the first."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in _named(model):
        place = (tensor.data_ptr(), tensor.nbytes)
        if tensor.nbytes and place in seen:
            continue
        seen.add(place)
        found[name] = tensor
    return found


def _named(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    saved = model.state_dict()
    yield from ((name, tensor) for name, tensor in model.named_buffers() if name in saved)


def _values(model: PreTrainedModel, row: Row, layer: int, tensors: dict[str, Tensor]) -> Tensor | None:
    """The logical values of one layer's parameter, or None where they are packed and the module does not show them."""
    name = f"{row.module}.{row.parameter}".replace("{layer}", str(layer))
    if name in tensors:
        return tensors[name]
    module = model.get_submodule(name.rpartition(".")[0])
    shown = getattr(module, row.parameter, None)
    return shown if isinstance(shown, Tensor) and shown.is_floating_point() and shown.shape == row.shape else None
