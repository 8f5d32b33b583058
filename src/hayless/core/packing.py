"""How a tensor is held in another form: the tensors that take its place, by name, shape and dtype. No torch.

A method that packs weights describes its form once, as a `Format`: predictions make rows of it, a loaded model gets
empty tensors from it, and `hayless.model.packing` puts filled ones in the place of a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hayless.core.ledger import Layout, Ledger, Product, Row, Scratch, Stored
from hayless.core.roles import Role

FEW = 64
"""Tokens on a GPU that are multiplied by codes as they are held; more are multiplied by the matrix, unpacked."""
FROM_CODES = Product("", Scratch(0, 0), Scratch(0, 0), few=FEW)
"""The product of weights whose codes a kernel turns into numbers while it reads them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a packed one. `name` is short (`codes`, `scale`); `cast`: it is in the dtype of the weights and is
    cast together with them, while the others keep their dtype whatever happens to the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    cast: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The form of one tensor of `shape`, as its module lays it out. Methods give `pieces`; where files of another
    library hold such weights too, also `ecosystem` (the name that the method's card gives its layout) and `disk`.

    Whatever the layout, a tensor is packed as `matrices` of `rows` by `columns`, where a row is an output channel (an
    entry of a table): a Conv1D is turned round, and only a stack of experts has more than one matrix.
    """

    shape: tuple[int, ...]
    layout: Layout

    @property
    def matrices(self) -> int:
        """Experts of a stack; 1 for anything else."""
        return self.shape[0] if self.layout is Layout.EXPERTS else 1

    @property
    def rows(self) -> int:
        """Output channels of one matrix."""
        return self.shape[-1] if self.layout is Layout.CONV1D else self.shape[-2]

    @property
    def columns(self) -> int:
        """Input channels of one matrix, or the width of a table."""
        return self.shape[-2] if self.layout is Layout.CONV1D else self.shape[-1]

    @property
    def elements(self) -> int:
        """How many numbers are packed."""
        return math.prod(self.shape)

    def pieces(self, dtype: str) -> tuple[Piece, ...]:
        """The tensors of a weight whose own dtype was `dtype`."""
        raise NotImplementedError

    @property
    def product(self) -> Product | None:
        """How a matrix is multiplied where that needs no whole one; None where it is unpacked first."""
        return None

    @property
    def ecosystem(self) -> str:
        """The name of the layout that `disk` is in; empty where this package's own is the only one."""
        return ""

    def disk(self, dtype: str) -> tuple[Piece, ...]:
        """The tensors that a file of that layout holds, by their names within the module (`weight.absmax`)."""
        raise NotImplementedError


def packed_row(row: Row, form: Format, method: str, *, replaceable: bool = False) -> Row:
    """The row of a parameter that `method` packs. Its elements stay what they were; they receive no gradients.

    `replaceable`: other libraries can put a module of theirs in the place of the one that holds it.
    """
    held = tuple(
        Stored(f"{row.module}.{held_name(row.parameter, piece.name)}", piece.shape, piece.dtype, cast=piece.cast)
        for piece in form.pieces(row.dtype)
    )
    disk: tuple[Stored, ...] = ()
    ecosystem = form.ecosystem if replaceable else ""
    if ecosystem:
        module = disk_module(row)
        disk = tuple(Stored(f"{module}.{piece.name}", piece.shape, piece.dtype) for piece in form.disk(row.dtype))
    product = form.product if row.layout in (Layout.LINEAR, Layout.CONV1D) else None
    row = replace(row, held=held, disk=disk, trainable=False, nonzero=None)
    return replace(row, method=method, ecosystem=ecosystem, product=product)


def is_replaceable(ledger: Ledger, row: Row) -> bool:
    """Whether libraries that replace linear modules by their own reach this weight.

    Routers are modules of another kind in transformers; and of T5 it keeps some linears in float32, whatever is asked.
    """
    return row.layout in (Layout.LINEAR, Layout.CONV1D) and row.role is not Role.ROUTER and ledger.dims.family != "t5"


def disk_module(row: Row) -> str:
    """The path template of a row's module as files call it."""
    name = row.disk[0].name if row.disk else f"{row.module}.{row.parameter}"
    return name.removesuffix(f".{row.parameter}")


def held_name(parameter: str, piece: str) -> str:
    """The name of a piece in the module of `parameter`: `weight_codes`.

    `gate_up_proj` gives `gate_up_codes`: transformers splits buffers named `gate_up_proj_*` into experts.
    """
    return f"{parameter.removesuffix('_proj')}_{piece}"
