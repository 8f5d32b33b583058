"""Packed weights as kernels read them: a row is so many units (bytes or words) that hold so many elements each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.kernels.packed.formats import Integers, Packed, Palette, Table

INTEGERS, TABLE, PALETTE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

_UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""Eight elements a unit, four of 8 bits."""


@dataclass(frozen=True, slots=True)
class Source:
    """What every kernel of packed weights takes: tensors and sizes by the kernel's own names.

    Tensors that a form lacks are another of its tensors, and are not read.
    """

    codes_ptr: Tensor
    scale_ptr: Tensor
    zero_ptr: Tensor
    book_ptr: Tensor
    second_table_ptr: Tensor
    second_scale_ptr: Tensor
    offset_ptr: Tensor
    n: int
    width: int
    units: int
    groups: int
    GROUP: int
    KIND: int
    BITS: int
    PER: int
    BOOK_ROWS: int = 1
    TURN: int = 0
    XOR: int = 0
    ZERO: bool = False
    NESTED: bool = False

    def arguments(self) -> dict[str, Any]:
        """By name, for a launch."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def in_units(weight: Packed) -> bool:
    """Whether bytes hold whole elements of one row and one group, which products in Triton need."""
    bits, width = _bits(weight), weight.shape[1]
    return 8 % bits == 0 and width * bits % 8 == 0 and width // _groups(weight) * bits % 8 == 0


def source(weight: Packed) -> Source:
    """`weight` in the widest units that its rows and groups are made of. NotSupported unless it is `in_units`."""
    _, width = weight.shape
    bits, group = _bits(weight), width // _groups(weight)
    if not in_units(weight):
        raise NotSupported(
            f"No kernel multiplies by {bits} bits an element in rows of {width} and groups of {group}.",
            hint="A byte must hold whole elements of one row and one group; dequantize the weight instead.",
        )
    unit = _UNITS[bits]
    if group * bits % (8 * unit.itemsize) or weight.codes.data_ptr() % unit.itemsize:
        unit = torch.uint8
    return _source(weight, weight.codes.flatten().view(unit), 8 * unit.itemsize // bits)


def elements(weight: Packed) -> Source:
    """`weight` as single elements within a stream of bytes: any form."""
    return _source(weight, weight.codes.flatten(), 1)


def _source(weight: Packed, codes: Tensor, per: int) -> Source:
    rows, width = weight.shape
    groups = _groups(weight)
    common = Source(
        codes_ptr=codes,
        scale_ptr=codes,
        zero_ptr=codes,
        book_ptr=codes,
        second_table_ptr=codes,
        second_scale_ptr=codes,
        offset_ptr=codes,
        n=rows,
        width=width,
        units=width // per,
        groups=groups,
        GROUP=width // groups // per,
        KIND=INTEGERS.value,
        BITS=_bits(weight),
        PER=per,
    )
    if isinstance(weight, Palette):
        return replace(common, KIND=PALETTE.value, book_ptr=weight.codebook, BOOK_ROWS=weight.group_size)
    if isinstance(weight, Integers):
        if weight.divisor != 1:
            raise NotSupported("No kernel in Triton divides scales.", hint="Give scales that are steps, and divisor 1.")
        zero = codes if weight.zero is None else weight.zero
        turned = _highest_bits(weight.bits, codes.dtype) if weight.twos_complement else 0
        return replace(common, scale_ptr=weight.scale, zero_ptr=zero, ZERO=weight.zero is not None, XOR=turned)
    table = replace(common, KIND=TABLE.value, TURN=1, scale_ptr=weight.absmax, book_ptr=weight.table)
    if weight.nested is None:
        return table
    return replace(
        table,
        NESTED=True,
        second_table_ptr=weight.nested.table,
        second_scale_ptr=weight.nested.scale,
        offset_ptr=weight.nested.offset,
    )


def _bits(weight: Packed) -> int:
    return 4 if isinstance(weight, Table) else weight.bits


def _groups(weight: Packed) -> int:
    return 1 if isinstance(weight, Palette) else weight.groups


def _highest_bits(bits: int, unit: torch.dtype) -> int:
    """The highest bit of every code of a unit, as a number of 32 bits."""
    mask = sum(1 << place for place in range(bits - 1, 8 * unit.itemsize, bits))
    return mask - 2**32 if mask >= 2**31 else mask


@triton.jit
def codes_at(packed, PLACE: tl.constexpr, BITS: tl.constexpr, TURN: tl.constexpr):
    """The codes at one place of each unit; with TURN the first element of a byte is its high half."""
    return (packed >> (BITS * (PLACE ^ TURN))) & ((1 << BITS) - 1)


@triton.jit
def one_and(packed, PLACE: tl.constexpr, BITS: tl.constexpr):
    """1 + code / 2^BITS in float32: the code as the highest bits of the mantissa, without a conversion."""
    if 23 - BITS - BITS * PLACE >= 0:
        moved = packed << (23 - BITS - BITS * PLACE)
    else:
        moved = packed >> (BITS * PLACE + BITS - 23)
    return ((moved & (((1 << BITS) - 1) << (23 - BITS))) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def scales_at(scale_ptr, second_table_ptr, second_scale_ptr, offset_ptr, index, mask, NESTED: tl.constexpr):
    """Scales in float32, by their index; those of double quantization are put together."""
    scale = tl.load(scale_ptr + index, mask=mask, other=0)
    if NESTED:
        first = tl.load(second_table_ptr + scale.to(tl.int32))
        scale = first * tl.load(second_scale_ptr + index // 256, mask=mask, other=0.0) + tl.load(offset_ptr)
    return scale.to(tl.float32)
