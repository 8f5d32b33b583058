"""Folding adapters into their base; and what becomes of packed weights then, which cannot be added to as they are.

`requantize`: a weight is unpacked, the adapter is folded in, and the sum is packed again as it was before: the file
stays small, and the error of packing is made anew, on another value. `dequantize`: the base becomes an ordinary model
of what its packed weights stand for, and the adapter is folded into that: as large as a model of 16 bits, without that
error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.core.families import ledger_of
from hayless.core.ledger import Row
from hayless.core.method import Aspect, MethodConfig
from hayless.core.registry import method_of
from hayless.model.anatomy import dims_of_model
from hayless.model.packing import PackedModule, uninstall
from hayless.model.streaming import OneByOne, packs_one_by_one
from hayless.model.transform import Change, forget, record

Way = Literal["requantize", "dequantize"]
WEIGHT = "weight"


class PackedBase:
    """The packed weights of a model while an adapter is folded into them in one `way`; None refuses that."""

    def __init__(self, model: PreTrainedModel, way: Way | None = None) -> None:
        self._way = way
        self._packers: dict[str, tuple[Row, OneByOne]] = {}
        self._squared_change = self._squared_error = 0.0
        if way == "requantize":
            ledger = ledger_of(dims_of_model(model))
            for config in filter(packs_one_by_one, record(model)):
                packer = method_of(config).load().one_by_one(ledger, config)
                for row in packer.rows:
                    for layer in row.layers or (0,):
                        self._packers[row.module.replace("{layer}", str(layer))] = row, packer

    def check(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """NotSupported where a packed weight among these modules (by path) cannot be opened."""
        packed = [path for path, module in modules if _is_packed(module)]
        if packed and self._way is None:
            raise NotSupported(
                f"An adapter cannot be merged into packed weights as they are: {packed[0]} and {len(packed) - 1} others"
                " hold codes, not numbers that can be changed.",
                hint="Merge and pack again (merge: requantize), merge into what the codes stand for, as a model of 16"
                " bits (merge: dequantize), or save base and adapter side by side (merge: false).",
            )
        lost = [path for path in packed if self._way == "requantize" and path not in self._packers]
        if lost:
            raise NotSupported(
                f"{lost[0]} cannot be packed again by itself: what its codes are follows from more than its weight.",
                hint="Merge into what the codes stand for (merge: dequantize).",
            )

    @contextmanager
    def opened(self, path: str, module: Any) -> Iterator[None]:
        """Inside the block the module at `path` has an ordinary weight, in float32 where it was packed; after it the
        weight is packed again, or rounded once to the dtype that it was unpacked to."""
        if not _is_packed(module):
            yield
            return
        dtype = module.unpacked_dtype
        module.unpacked_dtype = torch.float32
        before = uninstall(module, WEIGHT)
        yield
        merged: Tensor = module.weight.detach()
        if self._way == "requantize":
            row, packer = self._packers[path]
            packer.pack(row, path, module)
            module.to(dtype)
        else:
            module.weight.data = merged.to(dtype)
        self._squared_change += float(torch.linalg.vector_norm(merged - before)) ** 2
        self._squared_error += float(torch.linalg.vector_norm(module.weight.detach().float() - merged)) ** 2

    def figures(self) -> dict[str, float]:
        """`change_norm`, how far the adapter moved the packed weights, and `error_norm`, how far from there they are
        now (Frobenius norms over all of them); nothing where none was packed."""
        if not self._squared_change:
            return {}
        return {"change_norm": math.sqrt(self._squared_change), "error_norm": math.sqrt(self._squared_error)}


def merge_adapters(model: PreTrainedModel, way: Way | None = None) -> list[Change]:
    """Fold every adapter on the record into the base and take it off the record; an empty list where there is none.

    `way` says what becomes of packed weights. With `dequantize` all of them become ordinary ones, those without an
    adapter too. NotSupported where an adapter cannot be folded (into packed weights without a way, say); that one then
    stays as it was.
    """
    changes = []
    for config in reversed(record(model)):
        method = method_of(config)
        if method.peft_type:
            base = PackedBase(model, way)
            with torch.no_grad():
                change = method.load().merge(model, config, base)
            changes.append(Change(change.method, change.changed, change.skipped, {**change.figures, **base.figures()}))
            forget(model, config)
    if way == "dequantize":
        dequantize(model)
    return changes


def dequantize(model: PreTrainedModel) -> None:
    """Make every packed weight an ordinary one of what it stands for; without an adapter, everything trains then."""
    for module in list(model.modules()):
        if isinstance(module, PackedModule):
            for parameter in tuple(module.packings):
                uninstall(module, parameter)
    for config in record(model):
        if packs(config):
            forget(model, config)
    if not any(method_of(config).peft_type for config in record(model)):
        model.requires_grad_(True)


def packs(config: MethodConfig) -> bool:
    """Whether a transform changes how weights are stored."""
    return any(claim.aspect is Aspect.STORAGE for claim in method_of(config).claims(config))


def _is_packed(module: Any) -> bool:
    return isinstance(module, PackedModule) and WEIGHT in module.packings
