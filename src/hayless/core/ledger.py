"""The Ledger: every tensor a model has, as rows that methods rewrite.

A row stands for one parameter of one kind of module, repeated over the layers that hold it. Rows know the names and
shapes of what lies in memory and on disk, so counts of parameters and bytes of files are exact, and a wrong prediction
names its role.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from hayless.core.dims import ModelDims
from hayless.core.dtypes import item_bytes
from hayless.core.files import SHARD_BYTES, TensorEntry, file_bytes
from hayless.core.roles import Role


class Layout(StrEnum):
    """How a parameter is laid out in memory."""

    LINEAR = "linear"
    """A matrix (out, in), as torch.nn.Linear holds it."""
    CONV1D = "conv1d"
    """A matrix (in, out), as transformers' Conv1D (GPT-2) holds it."""
    EXPERTS = "experts"
    """A stack (experts, out, in)."""
    TABLE = "table"
    """An embedding (entries, width)."""
    VECTOR = "vector"
    """A bias or a norm's gain."""


MATRICES = frozenset({Layout.LINEAR, Layout.CONV1D, Layout.EXPERTS})


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored tensor of a row: its name template (`{layer}`, `{expert}`), shape, dtype and file, empty if none.

    `cast`: it is cast together with the weights where the model is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str = "model"
    experts: int = 0
    cast: bool = True

    @property
    def bytes(self) -> int:
        """Bytes of this tensor in one layer, all experts together."""
        return math.prod(self.shape) * item_bytes(self.dtype) * max(1, self.experts)


@dataclass(frozen=True, slots=True)
class Scratch:
    """Bytes that a product needs while it runs, beside its input and its result: for each token, and `fixed_bytes`
    where there are more than `few` tokens."""

    fixed_bytes: int
    token_bytes: int
    few: int = 0

    def of(self, tokens: int) -> int:
        """Bytes for so many tokens."""
        return tokens * self.token_bytes + (self.fixed_bytes if tokens > self.few else 0)


@dataclass(frozen=True, slots=True)
class Product:
    """How a packed matrix meets its input where its tensors are multiplied as they are, and not unpacked first.

    `dtype` is that of the numbers that are multiplied, empty for the input's own; `kernel` is what that needs on a GPU,
    `plain` without a kernel for it. Backward the matrix is unpacked. `few`: only so many tokens at most are multiplied
    thus, and only on a GPU; more of them meet the unpacked matrix.
    """

    dtype: str
    kernel: Scratch
    plain: Scratch
    few: int | None = None

    def serves(self, tokens: int, device: str) -> bool:
        """Whether so many tokens are multiplied without unpacking."""
        return self.few is None or (device == "cuda" and tokens <= self.few)


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter, over all the layers that have it.

    `shape` is the logical shape of the parameter in one layer. `held` is what represents it in memory (one tensor of
    that shape unless a method packed it); `disk` is what a plain Hugging Face file calls it, where that differs.
    `nonzero` counts the elements that are not zero by construction, all layers together (None: all of them).
    `tied_to` names the module whose storage this row shares; a tied row has no bytes of its own. `product` says how a
    packed matrix is multiplied (None: it is unpacked first). `ecosystem` names the layout that `disk` is in where a
    method packed the row and a library's files hold such weights too.
    """

    role: Role
    module: str
    parameter: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    layers: tuple[int, ...] = ()
    trainable: bool = True
    held: tuple[Stored, ...] = ()
    disk: tuple[Stored, ...] = ()
    tied_to: str | None = None
    nonzero: int | None = None
    method: str = ""
    ecosystem: str = ""
    product: Product | None = None

    def __post_init__(self) -> None:
        if not self.held:
            name = f"{self.module}.{self.parameter}"
            object.__setattr__(self, "held", (Stored(name, self.shape, self.dtype),))

    @property
    def is_matrix(self) -> bool:
        """True for weights that multiply activations (not embeddings, biases or norms)."""
        return self.layout in MATRICES

    @property
    def count(self) -> int:
        """How many layers hold this parameter (1 for one outside the blocks)."""
        return max(1, len(self.layers))

    @property
    def elements(self) -> int:
        """Logical elements over all layers; 0 where storage is shared with another row."""
        return 0 if self.tied_to else self.count * math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes held in memory over all layers."""
        return 0 if self.tied_to else self.count * sum(tensor.bytes for tensor in self.held)

    @property
    def in_features(self) -> int:
        """Width of the input of a matrix."""
        return self.shape[0] if self.layout is Layout.CONV1D else self.shape[-1]

    @property
    def out_features(self) -> int:
        """Width of the output of a matrix (of one expert)."""
        return self.shape[-1] if self.layout is Layout.CONV1D else self.shape[-2]

    def entries(self, *, on_disk: bool) -> Iterator[tuple[str, TensorEntry]]:
        """(file, tensor) of everything this row writes: Hugging Face's names if `on_disk`, else the names in memory."""
        if self.tied_to:
            return
        for tensor in self.disk if on_disk and self.disk else self.held:
            if not tensor.file:
                continue
            for layer in self.layers or (0,):
                for expert in range(max(1, tensor.experts)):
                    name = tensor.name.replace("{layer}", str(layer)).replace("{expert}", str(expert))
                    yield tensor.file, TensorEntry(name, tensor.dtype, tensor.shape)


@dataclass(frozen=True, slots=True)
class Ledger:
    """All rows of a model and the methods that have rewritten them, in order."""

    dims: ModelDims
    rows: tuple[Row, ...]
    methods: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Logical parameters, shared storage once, adapters included."""
        return sum(row.elements for row in self.rows)

    @property
    def trainable(self) -> int:
        """Parameters that receive gradients."""
        return sum(row.elements for row in self.rows if row.trainable)

    @property
    def nonzero(self) -> int:
        """Parameters that are not zero by construction."""
        return sum(row.elements if row.nonzero is None else row.nonzero for row in self.rows)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(row.bytes for row in self.rows)

    @property
    def ecosystem(self) -> str:
        """The layout of another library that files are in; empty where nothing is packed, or not all of it in one."""
        found = sorted({row.ecosystem for row in self.rows if _is_packed(row)})
        return found[0] if len(found) == 1 else ""

    @property
    def packed(self) -> bool:
        """True when a method changed how weights are stored, so that files carry this package's tensor names."""
        return any(_is_packed(row) for row in self.rows) and not self.ecosystem

    def where(self, roles: Collection[Role], *, matrices: bool = True) -> Iterator[Row]:
        """Rows of these roles; only weight matrices unless `matrices` is False."""
        return (row for row in self.rows if row.role in roles and (row.is_matrix or not matrices))

    def rewrite(self, method: str, change: Callable[[Row], Row], extra: tuple[Row, ...] = ()) -> Ledger:
        """A ledger with `change` applied to every row, `extra` rows added and `method` noted."""
        return replace(self, rows=tuple(change(row) for row in self.rows) + extra, methods=(*self.methods, method))

    def file_bytes(self, limit: int = SHARD_BYTES) -> dict[str, int]:
        """Exact bytes of each safetensors file this model is saved as, by name (`model`, `adapter`).

        A model with more than `limit` bytes of tensors is written as several files and counted whole under `model`; its
        JSON index is not counted.
        """
        entries: dict[str, list[TensorEntry]] = {}
        for row in self.rows:
            for file, entry in row.entries(on_disk=row.role is Role.ADAPTER or not self.packed):
                entries.setdefault(file, []).append(entry)
        return {file: file_bytes(found, limit) for file, found in entries.items()}


def _is_packed(row: Row) -> bool:
    """Whether a method put other tensors in the place of this row's weight."""
    return bool(row.method) and any(tensor.file == "model" for tensor in row.held)
