"""What methods share that pack each weight by itself: the part that does it, and its prediction's refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.packing import Format
from hayless.core.progress import Progress
from hayless.methods.common.packed_rows import PackingConfig, check_untied, tied
from hayless.methods.common.weights import Weight, check_finite, plain_ledger, weights_of
from hayless.model.packing import PackedModule, Packing, Pieces, empty_pieces, install
from hayless.model.transform import Change, Context

C = TypeVar("C", bound=PackingConfig)
P = TypeVar("P", bound=Packing[Format])
T = TypeVar("T")


@dataclass(frozen=True)
class Packer(Generic[C, P]):
    """Fills the transform slot for a method that looks at nothing but one tensor's values at a time.

    `packing` says in which form a row is held; `pack` gives the pieces of a tensor (matrices, rows, columns).
    """

    packing: Callable[[Row, C], P]
    pack: Callable[[Tensor, P, C], Pieces]

    def apply(self, model: PreTrainedModel, config: C, context: Context) -> Change:
        """Replace the targets by packed ones; the figures are those of `Errors`.

        RequestError for weights that are not finite, NotSupported for tied or packed ones; nothing is changed then.
        """
        weights = packable(model, config)
        check_finite(weights)
        each = Each(self, config, list(dict.fromkeys(weight.row for weight in weights)))
        for weight in watched(weights, config.method, len(weights), context.progress):
            each.put(weight)
        return each.change()

    def restore(self, model: PreTrainedModel, config: C) -> None:
        """Give the targets empty pieces of the right shapes."""
        empty_packed(model, config, self.packing)

    def one_by_one(self, ledger: Ledger, config: C) -> Each[C, P]:
        """The packing of a model with this ledger, whose weights come one after the other."""
        return Each(self, config, check_untied(ledger, config))


class Each(Generic[C, P]):
    """Packs the weights of some rows, each by itself, and sums up what that did."""

    def __init__(self, packer: Packer[C, P], config: C, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._packer = packer
        self._config = config
        self._packings = {row: packer.packing(row, config) for row in rows}
        self._errors = Errors()
        self._paths: list[str] = []

    def pack(self, row: Row, path: str, module: nn.Module) -> None:
        """Pack the parameter of `row` in `module`, which lies at `path`. RequestError where it is not finite."""
        weight = Weight(row, path, module)
        check_finite([weight])
        self.put(weight)

    def put(self, weight: Weight) -> None:
        """Pack a weight that is known to be finite."""
        packing = self._packings[weight.row]
        matrices = matrices_of(weight.parameter.detach(), packing.form)
        self.hold(weight, self._packer.pack(matrices, packing, self._config))

    def hold(self, weight: Weight, pieces: Pieces) -> None:
        """Put what a weight was packed into in its place."""
        packing, original = self._packings[weight.row], weight.parameter.detach()
        install(weight.module, weight.row.parameter, packing, pieces)
        self._errors.add(weight, original)
        self._paths.append(weight.path)

    def change(self) -> Change:
        """What was done; the figures are those of `Errors`."""
        return Change(self._config.method, tuple(self._paths), figures=self._errors.figures())


@dataclass(slots=True)
class Errors:
    """What packing did to the values: mean squared and largest error over all tensors, and of each."""

    squared: float = 0.0
    largest: float = 0.0
    elements: int = 0
    before: int = 0
    after: int = 0
    by_tensor: dict[str, float] = field(default_factory=dict)

    def add(self, weight: Weight, original: Tensor) -> None:
        """Compare a packed weight with what it was."""
        module = weight.module
        assert isinstance(module, PackedModule)
        error = (module.unpacked(weight.row.parameter) - original).float()
        total = float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
        self.by_tensor[f"mean_squared_error/{weight.name}"] = total / max(1, error.numel())
        self.squared += total
        self.largest = max(self.largest, float(error.abs().max())) if error.numel() else self.largest
        self.elements += original.numel()
        self.before += original.nbytes
        self.after += sum(piece.nbytes for piece in module.pieces(weight.row.parameter).values())

    def include(self, other: Errors) -> None:
        """Count what others were counted for too."""
        self.squared += other.squared
        self.largest = max(self.largest, other.largest)
        self.elements += other.elements
        self.before += other.before
        self.after += other.after
        self.by_tensor |= other.by_tensor

    def figures(self) -> dict[str, float]:
        """`mean_squared_error`, `largest_error`, `bytes_before`, `bytes_after`, `mean_squared_error/PATH`."""
        return {
            "mean_squared_error": self.squared / max(1, self.elements),
            "largest_error": self.largest,
            "bytes_before": float(self.before),
            "bytes_after": float(self.after),
            **self.by_tensor,
        }


def empty_packed(model: PreTrainedModel, config: C, packing_of: Callable[[Row, C], Packing[Format]]) -> None:
    """Put empty pieces of the right shapes in the places of the targets."""
    for weight in packable(model, config):
        packing, original = packing_of(weight.row, config), weight.parameter
        pieces = empty_pieces(packing.form, original.dtype, original.device)
        install(weight.module, weight.row.parameter, packing, pieces)


def matrices_of(tensor: Tensor, form: Format) -> Tensor:
    """A parameter as formats see it: (matrices, rows, columns), rows being output channels."""
    rows_first = tensor.T if form.layout is Layout.CONV1D else tensor
    return rows_first.reshape(form.matrices, form.rows, form.columns)


def packable(model: PreTrainedModel, config: PackingConfig) -> list[Weight]:
    """The weights to pack. NotSupported where another module shares one of them."""
    weights = weights_of(model, check_untied(plain_ledger(model), config))
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), []).append(path)
    for weight in weights:
        others = [path for path in holders[id(weight.parameter)] if path != weight.path]
        if others:
            raise tied(config.method, weight.path, others[0])
    return weights


def watched(items: Iterable[T], what: str, total: int, progress: Progress) -> Iterator[T]:
    """The items, with a report before each and after the last."""
    for number, item in enumerate(items):
        progress(what, number, total)
        yield item
    progress(what, total, total)
