"""Products of a decode program: a matrix as it is, one that a method has packed, and one with adapters beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.kernels.adapters import Stack, add_branches
from hayless.kernels.packed.formats import Integers, Packed, Product, Table
from hayless.kernels.packed.linear import linear
from hayless.model.packing import PackedModule

if TYPE_CHECKING:
    from hayless.kernels.linear import Norm

_FEW_ROWS = 8
_SMALL = 1 << 17
"""Elements of a matrix that a cache holds."""
_NARROW, _BLOCK = 256, 32
"""Rows of a matrix so short that calls cost as much as products go in blocks, which are too small for two threads."""


class Linear:
    """A matrix (out, in) and its bias.

    One CPU thread multiplies a few rows in float32 by other calls than PyTorch's own, which read weights from memory
    at half of what it gives: one row by NumPy's scalar products, which never take a second thread, some as W·xᵀ.
    """

    __slots__ = ("_from_memory", "_transposed", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._transposed = weight.T
        plain = weight.device.type == "cpu" and weight.dtype is torch.float32 and weight.is_contiguous()
        self._from_memory = plain and weight.numel() >= _SMALL

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What a product reads."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        rows = x.flatten(0, -2)
        if not self._takes(rows):
            return F.linear(x, self.weight, self.bias)
        found = self._few(rows, self._new(rows))
        if self.bias is not None:
            found += self.bias
        return found.view(*x.shape[:-1], -1)

    def into(self, out: Tensor, x: Tensor) -> None:
        """out ← x·Wᵀ + b, both of two dimensions."""
        if self._takes(x):
            self._few(x, out)
            if self.bias is not None:
                out.add_(self.bias)
        elif self.bias is None:
            torch.mm(x, self._transposed, out=out)
        else:
            torch.addmm(self.bias, x, self._transposed, out=out)

    def onto(self, out: Tensor, x: Tensor) -> None:
        """out ← out + x·Wᵀ + b, both of two dimensions."""
        if self._takes(x):
            out.add_(self._few(x, self._new(x)))
        else:
            out.addmm_(x, self._transposed)
        if self.bias is not None:
            out.add_(self.bias)

    def _takes(self, x_ni: Tensor) -> bool:
        """Whether `_few` is to multiply these."""
        return self._from_memory and 0 < len(x_ni) <= _FEW_ROWS and torch.get_num_threads() == 1

    def _few(self, x_ni: Tensor, out_no: Tensor) -> Tensor:
        """out ← x·Wᵀ of a few rows."""
        if len(x_ni) == 1:
            weight, x, out = self.weight.numpy(), x_ni.numpy()[0], out_no.numpy()[0]
            if len(x) <= _NARROW and len(out) % _BLOCK == 0:
                np.matmul(weight.reshape(-1, _BLOCK, len(x)), x, out.reshape(-1, _BLOCK))
            else:
                np.vecdot(weight, x, out)
        else:
            out_no.copy_(torch.mm(self.weight, x_ni.T).T)
        return out_no

    def _new(self, x_ni: Tensor) -> Tensor:
        return torch.empty(len(x_ni), len(self.weight))


class PackedProduct:
    """The same of a module whose weight is packed: its method's own product, from the module's own tensors."""

    __slots__ = ("_dtype", "_packing", "_pieces", "bias")

    def __init__(self, module: PackedModule, bias: Tensor | None) -> None:
        self.bias = bias
        self._packing = module.packings["weight"]
        self._pieces = module.pieces("weight")
        self._dtype = module.unpacked_dtype

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What a product reads."""
        pieces = list(self._pieces.values())
        return pieces if self.bias is None else [*pieces, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        return self._packing.multiply(x, self.bias, self._pieces, self._dtype)

    def into(self, out: Tensor, x: Tensor) -> None:
        """out ← x·Wᵀ + b, both of two dimensions."""
        self._write(out, x, add=False, overlap=False)

    def onto(self, out: Tensor, x: Tensor, *, overlap: bool = False) -> None:
        """out ← out + x·Wᵀ + b, likewise; `overlap` as of `linear`."""
        self._write(out, x, add=True, overlap=overlap)

    def codes(self, x: Tensor) -> Packed | None:
        """The weight as kernels multiply x by it; None where none does."""
        found = self._packing.codes(x, self._pieces, self._dtype)
        return found if isinstance(found, Packed) else None

    def _write(self, out: Tensor, x: Tensor, *, add: bool, overlap: bool) -> None:
        weight = self.codes(x) if out.is_contiguous() and out.dtype == x.dtype else None
        if weight is not None:
            linear(x, weight, self.bias, out=out, add=add, overlap=overlap)
        elif add:
            out.add_(self(x))
        else:
            out.copy_(self(x))


class RowSlots:
    """Which slot of a bank of adapters each row has that is computed now: `now` (b,) int32, −1 for none.

    None where no row has an adapter: nothing is added then.
    """

    def __init__(self) -> None:
        self.now: Tensor | None = None

    @contextmanager
    def using(self, slots_b: Tensor | None) -> Iterator[None]:
        """Compute rows with these slots."""
        before, self.now = self.now, slots_b
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def only(self, row: int) -> Iterator[None]:
        """Compute one of the rows by itself."""
        with self.using(None if self.now is None else self.now[row : row + 1]):
            yield


@dataclass(frozen=True, slots=True)
class Branches:
    """A bank's branches by the paths of the modules that they are beside, and what says which row has which."""

    stacks: Mapping[str, Stack]
    rows: RowSlots


class Branched:
    """A product with the branches of each row's adapter added."""

    __slots__ = ("base", "bias", "rows", "stack")

    def __init__(self, base: Linear | PackedProduct, stack: Stack, rows: RowSlots) -> None:
        self.base, self.bias = base, base.bias
        self.stack, self.rows = stack, rows

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What a product reads whatever adapters rows have."""
        return self.base.tensors

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b + the rows' branches."""
        out = self.base(x)
        add_beside([self], [out], x)
        return out

    def into(self, out: Tensor, x: Tensor) -> None:
        """out ← x·Wᵀ + b + the rows' branches, both of two dimensions."""
        self.base.into(out, x)
        add_beside([self], [out], x)

    def onto(self, out: Tensor, x: Tensor) -> None:
        """out ← out + x·Wᵀ + b + the rows' branches, both of two dimensions."""
        self.base.onto(out, x)
        add_beside([self], [out], x)


AnyProduct = Linear | PackedProduct | Branched


def base_of(product: AnyProduct) -> Linear | PackedProduct:
    """The product without branches."""
    return product.base if isinstance(product, Branched) else product


def add_beside(parts: Sequence[AnyProduct], outs: Sequence[Tensor], x: Tensor) -> None:
    """Add to each part's product of x the branches that it has, all at once."""
    pairs = [(part, out) for part, out in zip(parts, outs, strict=True) if isinstance(part, Branched)]
    if pairs and (slots_b := pairs[0][0].rows.now) is not None:
        add_branches([out for _, out in pairs], x, [part.stack for part, _ in pairs], slots_b)


def into_each(parts: Sequence[AnyProduct], outs: Sequence[Tensor], x: Tensor) -> None:
    """outs ← the products of one input with up to three matrices, all of two dimensions."""
    bases = [base_of(part) for part in parts]
    if not _at_once(bases, outs, x):
        for base, out in zip(bases, outs, strict=True):
            base.into(out, x)
    if any(isinstance(part, Branched) for part in parts):
        add_beside(parts, outs, x)


def normed_into_each(
    parts: Sequence[AnyProduct],
    outs: Sequence[Tensor],
    x: Tensor,
    norm: Norm,
    *,
    gated: bool = False,
    overlap: bool = False,
) -> bool:
    """`into_each` of RMSNorm(x) where one kernel does all of it; `gated`: silu(first) · second goes to the first of
    `outs`; `overlap` as of `linear`. Returns whether one does: nothing is done otherwise."""
    return _at_once(parts, outs, x, norm, gated=gated, overlap=overlap)


def _at_once(
    parts: Sequence[AnyProduct],
    outs: Sequence[Tensor],
    x: Tensor,
    norm: Norm | None = None,
    *,
    gated: bool = False,
    overlap: bool = False,
) -> bool:
    """Multiply by packed weights in one launch, if they are such and have one form."""
    if not isinstance(parts[0], PackedProduct):
        return False
    products = []
    for part, out in zip(parts, outs, strict=True):
        weight = part.codes(x) if isinstance(part, PackedProduct) else None
        if not isinstance(weight, Integers | Table):
            return False
        products.append(Product(weight, part.bias, out))
    from hayless.kernels.packed.tensor_cores import in_one_launch, multiply_each  # needs Triton

    if not in_one_launch(x, [one.weight for one in products], normed=norm is not None):
        return False
    multiply_each(x, products, norm=norm, gated=gated, overlap=overlap)
    return True
