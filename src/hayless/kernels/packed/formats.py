"""Weights as few bits: what the packed kernels read, and what each form means in plain PyTorch.

Integers with a scale a group of columns, sixteen values times a scale a block (nf4, fp4), and palettes of k-means. The
forms are those of files (compressed-tensors, bitsandbytes, hayless), so that nothing is laid out anew at load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.core.errors import bad_value
from hayless.kernels.packed.bits import unpack, unpack_rows

NESTED_BLOCK = 256
"""Scales that share a second scale (QLoRA, section 3: double quantization)."""


@dataclass(frozen=True, slots=True)
class Integers:
    """(code − zero) · scale, by group of columns.

    `codes` uint8 (out, in · bits / 8), packed along `in`, the lowest bits first; `bits` 2, 4 or 8. `scale` (out,
    groups) in fp16, bf16 or fp32, where groups divide `in` (one group: a scale a row). `zero` uint8 (out, groups), or
    None for 2^(bits − 1). With `twos_complement` codes are two's complement (01 = 1, 00 = 0, 11 = −1, 10 = −2 for two
    bits): their highest bit flipped makes them codes as above. Scales are `divisor` times too large: LLM.int8() keeps
    largest magnitudes, of which 127 are the steps.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    zero: Tensor | None = None
    twos_complement: bool = False
    divisor: int = 1

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise bad_value("bits", self.bits, allowed="2, 4 or 8")
        _bytes("codes", self.codes, 2)
        rows, width = self.shape
        if self.scale.ndim != 2 or self.scale.shape[0] != rows or not self.groups or width % self.groups:
            raise bad_value(
                "scale", tuple(self.scale.shape), allowed=f"({rows}, groups), of groups that divide {width}"
            )
        if self.zero is not None and (self.zero.shape != self.scale.shape or self.zero.dtype != torch.uint8):
            raise bad_value("zero", tuple(self.zero.shape), allowed=f"uint8 of the scale's shape {(rows, self.groups)}")
        _contiguous(codes=self.codes, scale=self.scale, zero=self.zero)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    @property
    def groups(self) -> int:
        """Scales a row."""
        return self.scale.shape[1]

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.groups


@dataclass(frozen=True, slots=True)
class Nested:
    """Double quantization: the scale of block b is table[absmax[b]] · scale[b // 256] + offset.

    `table` fp32 (256,), `scale` fp32 (blocks / 256, rounded up), `offset` fp32 of one element.
    """

    table: Tensor
    scale: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True)
class Table:
    """table[code] · absmax, by block of the row-major flattened weight: nf4 and fp4 in bitsandbytes' layout.

    `codes` uint8 (out · in / 2 elements, any shape), two a byte, the first in the high nibble. `table` fp32 (16,).
    `block_size` is a multiple of 32 that divides `in`. `absmax` fp32 (blocks,), or with `nested` uint8 codes.
    """

    codes: Tensor
    absmax: Tensor
    table: Tensor
    shape: tuple[int, int]
    block_size: int = 64
    nested: Nested | None = None

    def __post_init__(self) -> None:
        rows, width = self.shape
        if self.block_size % 32 or width % self.block_size:
            raise bad_value("block_size", self.block_size, allowed=f"multiples of 32 that divide {width}")
        _bytes("codes", self.codes, elements=rows * width // 2)
        blocks, kind = rows * self.groups, torch.float32 if self.nested is None else torch.uint8
        if self.absmax.numel() != blocks or self.absmax.dtype != kind:
            found = f"{self.absmax.dtype} {tuple(self.absmax.shape)}"
            raise bad_value("absmax", found, allowed=f"{kind} of {blocks} blocks")
        if self.table.shape != (16,) or self.table.dtype != torch.float32:
            raise bad_value("table", tuple(self.table.shape), allowed="16 values in float32")
        if self.nested is not None:
            seconds = -(-blocks // NESTED_BLOCK)
            sizes = {"table": 256, "scale": seconds, "offset": 1}
            for name, size in sizes.items():
                part = getattr(self.nested, name)
                if part.numel() != size or part.dtype != torch.float32:
                    raise bad_value(f"nested.{name}", tuple(part.shape), allowed=f"float32 of {size} elements")
                _contiguous(**{f"nested.{name}": part})
        _contiguous(codes=self.codes, absmax=self.absmax, table=self.table)

    @property
    def groups(self) -> int:
        """Blocks a row."""
        return self.shape[1] // self.block_size


@dataclass(frozen=True, slots=True)
class Palette:
    """codebook[row // group_size][code], k-means.

    `codes` uint8: a stream of `bits` (1 to 8) an element over the row-major flattened weight, the lowest bit first.
    `codebook` (groups, 2^bits) in the weight's dtype; `group_size` rows share one.
    """

    codes: Tensor
    codebook: Tensor
    shape: tuple[int, int]
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise bad_value("bits", self.bits, allowed="1 to 8")
        rows, width = self.shape
        _bytes("codes", self.codes, elements=-(-rows * width * self.bits // 8))
        books = (-(-rows // self.group_size), 2**self.bits)
        if self.codebook.shape != books:
            raise bad_value("codebook", tuple(self.codebook.shape), allowed=str(books))
        _contiguous(codes=self.codes, codebook=self.codebook)


Packed = Integers | Table | Palette


@dataclass(frozen=True, slots=True)
class Product:
    """x Wᵀ + `bias`, to be written to `out` (tokens, out), whose columns lie side by side."""

    weight: Integers | Table
    bias: Tensor | None
    out: Tensor


def dequantize_reference(weight: Packed, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) in plain PyTorch: computed in float32, rounded once."""
    rows, width = weight.shape
    if isinstance(weight, Integers):
        codes = unpack_rows(weight.codes, weight.bits, width).view(rows, weight.groups, -1).int()
        middle = 2 ** (weight.bits - 1)
        if weight.twos_complement:
            codes = codes ^ middle
        zero = middle if weight.zero is None else weight.zero.int()[..., None]
        values = (codes - zero) * (weight.scale.float() / weight.divisor)[..., None]
    elif isinstance(weight, Table):
        high_first = unpack(weight.codes.flatten(), 4, 2 * weight.codes.numel()).view(-1, 2).flip(1)
        values = weight.table[high_first.long()].view(-1, weight.block_size) * scales(weight)[:, None]
    else:
        codes = unpack(weight.codes.flatten(), weight.bits, rows * width).view(rows, width)
        books = weight.codebook.repeat_interleave(weight.group_size, 0)[:rows]
        values = books.gather(1, codes.long())
    return values.view(rows, width).to(dtype)


def linear_reference(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias in x's dtype, of the weight in x's dtype."""
    return F.linear(x, dequantize_reference(weight, x.dtype), bias)


def scales(weight: Table) -> Tensor:
    """The scale of each block (blocks,) in float32, whether double quantized or not."""
    absmax, nested = weight.absmax.flatten(), weight.nested
    if nested is None:
        return absmax
    second = nested.scale.flatten().repeat_interleave(NESTED_BLOCK)[: absmax.numel()]
    return nested.table.flatten()[absmax.long()] * second + nested.offset.flatten()


def _bytes(name: str, tensor: Tensor, dimensions: int | None = None, elements: int | None = None) -> None:
    wrong = tensor.dtype != torch.uint8 or dimensions not in (None, tensor.ndim)
    if wrong or elements not in (None, tensor.numel()):
        wanted = f"{elements} elements" if dimensions is None else f"{dimensions} dimensions"
        raise bad_value(name, f"{tensor.dtype} {tuple(tensor.shape)}", allowed=f"uint8 of {wanted}")


def _contiguous(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise bad_value(name, f"strides {tensor.stride()}", allowed="contiguous tensors")
