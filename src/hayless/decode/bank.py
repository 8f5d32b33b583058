"""Adapters side by side: one batch whose rows have different ones, of any rank and targets that the bank has room for.

    bank = AdapterBank.for_adapters(model, [adapter, other], slots=8)
    bank.add("legal", adapter)                       # and remove("legal"), between any two steps
    engine = Engine(model, tokenizer, adapters=bank)
    engine.generate(prompts, adapters=["legal", ""])

The bank's tensors stay where they are for as long as it lives, so captured steps follow what is put into them. How a
step adds the branches is in `hayless.kernels.adapters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.bank import bank_bytes, block_matrices
from hayless.core.errors import NotSupported, RequestError, WorkError, bad_value, unknown
from hayless.core.families import ledger_of
from hayless.core.units import format_bytes
from hayless.decode.products import Branches, RowSlots
from hayless.decode.request import Request
from hayless.kernels.adapters import Stack, add_branches
from hayless.model import adapters
from hayless.model.adapters import Adapter
from hayless.model.anatomy import dims_of_model
from hayless.model.source import local_folder
from hayless.model.transform import LowRank

NONE = -1
"""The slot of a row without an adapter."""


class InUse(RequestError):
    """An adapter that requests are still continued with."""


class AdapterBank:
    """Room for `slots` adapters of a rank of at most `rank` on the modules in `shapes`: path to (in, out) features.

    Their matrices are held in the model's dtype and on its device (`hayless.core.bank` says how many bytes that is).
    `base` is the model's folder or hub id, against which adapters that noted their base are checked; without it none
    is. Adapters may come and go from any thread, but on a GPU from the stream on which the model runs.

    NotSupported for a model that has an adapter on, WorkError where there is not so much memory.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        rank: int,
        shapes: Mapping[str, tuple[int, int]],
        *,
        base: str | Path | None = None,
    ) -> None:
        for field, value in (("slots", slots), ("rank", rank)):
            if value < 1:
                raise bad_value(field, value, allowed="1 or more")
        worn = adapters.on(model)
        if worn is not None:
            raise NotSupported(
                f"The model has an adapter on ({worn.method}), to which every row's own would be added.",
                hint="Merge it or take it off, or put it into the bank.",
            )
        self.rank = rank
        self._model, self._base = model, base
        self._names: list[str | None] = [None] * slots
        self._requests: WeakSet[Request] = WeakSet()
        self._lock = RLock()
        try:
            stacks = {path: self._stack(slots, *shape) for path, shape in shapes.items()}
        except RuntimeError:  # an allocator's
            needed = bank_bytes(shapes.values(), slots, rank, str(model.dtype).removeprefix("torch."))
            raise WorkError(
                f"There is no memory for {slots} adapters of rank {rank} beside the model: {format_bytes(needed)}.",
                hint="Make room for fewer, or for a lower rank.",
            ) from None
        self.branches = Branches(stacks, RowSlots())

    @classmethod
    def for_adapters(
        cls,
        model: PreTrainedModel,
        found: Iterable[Adapter],
        slots: int,
        *,
        rank: int | None = None,
        base: str | Path | None = None,
    ) -> AdapterBank:
        """A bank with room for adapters such as these, `slots` at once; none is put in.

        With a `rank` there is also room for any that is of no higher one and changes nothing but the blocks' matrices.
        NotSupported where one is more than low-rank sums, FileDamaged for one that does not fit the model.
        """
        shapes = {} if rank is None else block_matrices(ledger_of(dims_of_model(model)))
        most = 1 if rank is None else rank
        for adapter in found:
            for path, part in adapter.low_rank(model).items():
                most = max(most, len(part.a))
                shapes[path] = (part.a.shape[1], len(part.b))
        return cls(model, slots, most, shapes, base=base)

    @property
    def names(self) -> list[str]:
        """The adapters that are in."""
        return [name for name in self._names if name is not None]

    @property
    def slots(self) -> int:
        """How many adapters there is room for."""
        return len(self._names)

    @property
    def bytes(self) -> int:
        """What the bank takes on the model's device, full or empty."""
        tensors = [tensor for one in self.branches.stacks.values() for tensor in (one.a, one.b, one.scale, one.rank)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.no_grad()
    def add(self, name: str, adapter: Adapter) -> int:
        """Put an adapter into a free slot; the slot.

        RequestError for a name that is taken, another base, where no slot is free, and for a rank or modules that there
        is no room for; NotSupported for an adapter that is more than low-rank sums, FileDamaged for tensors that do not
        fit.
        """
        if self._base is not None:
            adapter.check_base(local_folder(self._base))
        parts = adapter.low_rank(self._model)
        lacks = self._lacks(parts)
        if lacks:
            raise RequestError(f"The bank has no room for {name}: {lacks}.", hint="Make a bank for such adapters.")
        with self._lock:
            if not name or name in self._names:
                raise bad_value("name", name, allowed="one that no adapter of the bank has, not empty")
            if None not in self._names:
                raise RequestError(f"All {self.slots} slots of the bank are taken.", hint="Remove an adapter.")
            slot = self._names.index(None)
            for path, stack in self.branches.stacks.items():
                _fill(stack, slot, parts.get(path))
            self._names[slot] = name
        return slot

    def remove(self, name: str) -> None:
        """Free an adapter's slot. RequestError for an unknown one, InUse while a request that has not ended has it."""
        with self._lock:
            slot = self._slot(name)
            if name in self.in_use:
                raise InUse(f"The adapter {name} is in use.", hint="Wait until its requests have ended.")
            self._names[slot] = None

    @property
    def in_use(self) -> set[str]:
        """The adapters of requests that have not ended."""
        with self._lock:
            slots = {request.slot for request in self._requests if request.finish is None}
        return {name for slot, name in enumerate(self._names) if name is not None and slot in slots}

    def assign(self, request: Request, name: str) -> None:
        """Give a request the adapter that it is to be continued with. RequestError for an unknown one."""
        with self._lock:
            request.slot = self._slot(name)
            self._requests.add(request)

    @contextmanager
    def on_modules(self, slots: Sequence[int]) -> Iterator[None]:
        """The model's own modules compute rows with these slots, by forward hooks that go again."""
        rows, read = self.branches.rows, _Read()
        with ExitStack() as stack:
            stack.enter_context(rows.using(slots_of(slots, self._model.device)))
            if rows.now is not None:
                stack.callback(self._model.get_input_embeddings().register_forward_hook(read.note).remove)
                for path, one in self.branches.stacks.items():
                    module = self._model.get_submodule(path)
                    stack.callback(module.register_forward_hook(partial(_hook, path, one, rows, read)).remove)
            yield

    @contextmanager
    def on_program(self, slots: Sequence[int]) -> Iterator[None]:
        """A program that was planned with these branches computes rows with these slots."""
        with self.branches.rows.using(slots_of(slots, self._model.device)):
            yield

    def _slot(self, name: str) -> int:
        if name not in self.names:
            raise unknown("adapter", name, self.names)
        return self._names.index(name)

    def _lacks(self, parts: Mapping[str, LowRank]) -> str:
        """What there is no room for; empty if there is for all."""
        for path, part in parts.items():
            if path not in self.branches.stacks:
                return f"it has no place for {path}"
            if len(part.a) > self.rank:
                return f"a rank of {len(part.a)} at {path}, more than {self.rank}"
        return ""

    def _stack(self, slots: int, width: int, out: int) -> Stack:
        device, dtype = self._model.device, self._model.dtype
        return Stack(
            torch.zeros(slots, self.rank, width, device=device, dtype=dtype),
            torch.zeros(slots, self.rank, out, device=device, dtype=dtype),
            torch.zeros(slots, device=device),
            torch.zeros(slots, device=device, dtype=torch.int32),
        )


def slots_of(slots: Sequence[int], device: torch.device) -> Tensor | None:
    """Rows' slots on the device; None where no row has an adapter."""
    if all(slot == NONE for slot in slots):
        return None
    return torch.tensor(slots, dtype=torch.int32, device=device)


def _fill(stack: Stack, slot: int, part: LowRank | None) -> None:
    rank = 0 if part is None else len(part.a)
    stack.a[slot, rank:] = 0
    stack.b[slot, rank:] = 0
    if part is not None:
        stack.a[slot, :rank] = part.a
        stack.b[slot, :rank] = part.b.T
        stack.scale[slot] = part.scale
    stack.rank[slot] = rank


class _Read:
    """How many tokens the model reads in one pass, all rows together, as its embedding sees them."""

    tokens = 0

    def note(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A hook of the embedding."""
        self.tokens = inputs[0].numel()


def _hook(
    path: str, stack: Stack, rows: RowSlots, read: _Read, module: Any, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """The module's output (…, out) with each row's branch added. It gets (b, s, in), or (b·s, in) row by row."""
    assert rows.now is not None
    x = inputs[0]
    if x.numel() // x.shape[-1] != read.tokens:
        raise NotSupported(
            f"{path} gets {tuple(x.shape)}, in which the {read.tokens} tokens of {len(rows.now)} rows cannot be told.",
            hint="Put the adapter on the model by itself.",
        )
    out = output.clone(memory_format=torch.contiguous_format)
    add_branches([out], x.contiguous().to(stack.a.dtype), [stack], rows.now)
    return out
