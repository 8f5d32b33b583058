"""Packed weights back in 16 or 32 bits, for large batches, whose products cost more than reading a weight twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.packed.formats import Packed, Palette
from hayless.kernels.packed.source import INTEGERS, PALETTE, elements, in_units, scales_at, source

_COLUMNS = 1024
_UNITS = 512
"""Two a thread, whose numbers it writes 16 bytes at once."""


@triton.jit
def _dequantize_units(
    codes_ptr,
    scale_ptr,
    zero_ptr,
    book_ptr,
    second_table_ptr,
    second_scale_ptr,
    offset_ptr,
    out_ptr,
    n,
    width,
    units,
    groups,
    GROUP: tl.constexpr,
    BOOK_ROWS: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    PER: tl.constexpr,
    TURN: tl.constexpr,
    XOR: tl.constexpr,
    ZERO: tl.constexpr,
    NESTED: tl.constexpr,
    UNITS: tl.constexpr,
):
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    there = unit < n * units
    packed = tl.load(codes_ptr + unit, mask=there, other=0).to(tl.int32)
    if XOR != 0:
        packed ^= XOR
    place = tl.arange(0, PER)
    code = (packed[:, None] >> ((place ^ TURN) * BITS)[None, :]) & ((1 << BITS) - 1)
    # Groups are whole units, and follow each other from row to row.
    index = unit // GROUP
    scale = scales_at(scale_ptr, second_table_ptr, second_scale_ptr, offset_ptr, index, there, NESTED)
    if KIND == INTEGERS:
        if ZERO:
            zero = tl.load(zero_ptr + index, mask=there, other=0).to(tl.int32)
            value = (code - zero[:, None]).to(tl.float32) * scale[:, None]
        else:
            value = (code - (1 << (BITS - 1))).to(tl.float32) * scale[:, None]
    else:
        value = tl.load(book_ptr + code) * scale[:, None]
    at = unit.to(tl.int64)[:, None] * PER + place[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=there[:, None])


@triton.jit
def _dequantize(
    codes_ptr,
    scale_ptr,
    zero_ptr,
    book_ptr,
    second_table_ptr,
    second_scale_ptr,
    offset_ptr,
    out_ptr,
    n,
    width,
    units,
    groups,
    GROUP: tl.constexpr,
    BOOK_ROWS: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    PER: tl.constexpr,
    TURN: tl.constexpr,
    XOR: tl.constexpr,
    ZERO: tl.constexpr,
    NESTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    row_bit = row * width * BITS
    codes_ptr += row_bit // 8
    bit = (row_bit % 8).to(tl.int32) + (column ^ TURN) * BITS
    packed = tl.load(codes_ptr + bit // 8, mask=mask, other=0).to(tl.int32)
    if XOR != 0:
        packed ^= XOR
    if 8 % BITS != 0:
        # An element may touch two bytes.
        more = mask & (bit % 8 + BITS > 8)
        packed |= tl.load(codes_ptr + bit // 8 + 1, mask=more, other=0).to(tl.int32) << 8
    code = (packed >> (bit % 8)) & ((1 << BITS) - 1)
    if KIND == PALETTE:
        value = tl.load(book_ptr + ((row // BOOK_ROWS) << BITS) + code, mask=mask, other=0.0).to(tl.float32)
    else:
        index = row * groups + column // GROUP
        scale = scales_at(scale_ptr, second_table_ptr, second_scale_ptr, offset_ptr, index, mask, NESTED)
        if KIND == INTEGERS:
            zero = 1 << (BITS - 1)
            if ZERO:
                zero = tl.load(zero_ptr + index, mask=mask, other=0).to(tl.int32)
            value = (code - zero).to(tl.float32) * scale
        else:
            value = tl.load(book_ptr + code, mask=mask, other=0.0) * scale
    tl.store(out_ptr + row * width + column, value.to(out_ptr.dtype.element_ty), mask=mask)


def dequantize(weight: Packed, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """The weight (out, in) in `dtype` (fp32, fp16 or bf16), in `out` where that is given: computed in float32, rounded
    once. Any number of bits, any group.
    """
    if out is None:
        out = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    if in_units(weight) and not isinstance(weight, Palette):
        given = source(weight)
        grid = (triton.cdiv(given.n * given.units, _UNITS),)
        _dequantize_units[grid](out_ptr=out, **given.arguments(), UNITS=_UNITS, num_warps=8)
        return out
    given = elements(weight)
    _dequantize[given.n, triton.cdiv(given.width, _COLUMNS)](
        out_ptr=out, **given.arguments(), COLUMNS=_COLUMNS, num_warps=4
    )
    return out
