"""y = Wx for one token and packed weights, in float32: every weight is three instructions.

A code becomes a float32 in [1, 2) by being put into its mantissa (a shift, one three-input logic operation), and is
multiplied as that; what the 1 and the zero point add is taken off once a group: with v = 1 + c / 2^bits,
Σ x (c − zero) = 2^bits (Σ x v − Σ x) − zero Σ x. Values of tables and palettes are looked up instead.
"""

from __future__ import annotations

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.kernels.packed.formats import Integers, Packed, Palette
from hayless.kernels.packed.source import INTEGERS, PALETTE, codes_at, one_and, scales_at, source
from hayless.kernels.packed.tiles import VectorTiles, vector_tiles_for


@triton.jit
def _halves(x, UNITS: tl.constexpr, HALF: tl.constexpr):
    """Even and odd columns of x (UNITS, 2 · HALF)."""
    return tl.split(tl.reshape(x, (UNITS, HALF, 2)))


@triton.jit
def _places(x, UNITS: tl.constexpr, PER: tl.constexpr):
    """The columns of x (UNITS, PER), PER of 1, 2, 4 or 8, each (UNITS,)."""
    if PER == 1:
        found = (tl.reshape(x, (UNITS,)),)
    else:
        even, odd = _halves(x, UNITS, PER // 2)
        if PER == 2:
            found = (tl.reshape(even, (UNITS,)), tl.reshape(odd, (UNITS,)))  # type: ignore[assignment]
        elif PER == 4:
            x0, x2 = tl.split(even)
            x1, x3 = tl.split(odd)
            found = (x0, x1, x2, x3)  # type: ignore[assignment]
        else:
            x04, x26 = _halves(even, UNITS, 2)
            x15, x37 = _halves(odd, UNITS, 2)
            x0, x4 = tl.split(x04)
            x2, x6 = tl.split(x26)
            x1, x5 = tl.split(x15)
            x3, x7 = tl.split(x37)
            found = (x0, x1, x2, x3, x4, x5, x6, x7)  # type: ignore[assignment]
    return found


@triton.jit
def _gemv(
    x_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    book_ptr,
    second_table_ptr,
    second_scale_ptr,
    offset_ptr,
    bias_ptr,
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
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    RUN: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    unit = tl.arange(0, UNITS)
    run = tl.arange(0, UNITS // RUN)
    place = tl.arange(0, PER)
    at = row[:, None].to(tl.int64) * units + unit[None, :]
    scale_row = row[:, None].to(tl.int64) * groups
    book = book_ptr + ((row // BOOK_ROWS) << BITS)[:, None]
    total = tl.zeros((ROWS, UNITS // RUN), tl.float32)
    for start in tl.range(0, units, UNITS, num_stages=STAGES):
        present = start + unit < units
        mask = inside[:, None] & present[None, :]
        packed = tl.load(codes_ptr + at + start, mask=mask, other=0, eviction_policy="evict_first").to(tl.int32)
        if XOR != 0:
            packed ^= XOR
        column = (start + unit)[:, None] * PER + place[None, :]
        x = tl.load(x_ptr + column, mask=present[:, None], other=0.0).to(tl.float32)
        places = _places(x, UNITS, PER)
        part = tl.zeros((ROWS, UNITS), tl.float32)
        for p in tl.static_range(PER):
            if KIND == INTEGERS:
                value = one_and(packed, p, BITS)
            elif KIND == PALETTE:
                value = tl.load(book + codes_at(packed, p, BITS, TURN), mask=mask, other=0.0).to(tl.float32)
            else:
                value = tl.load(book_ptr + codes_at(packed, p, BITS, TURN))
            part += value * places[p][None, :]
        sums = tl.sum(tl.reshape(part, (ROWS, UNITS // RUN, RUN)), 2)
        if KIND != PALETTE:
            group = start + run * RUN
            index = scale_row + (group // GROUP)[None, :]
            there = inside[:, None] & (group < units)[None, :]
            scale = scales_at(scale_ptr, second_table_ptr, second_scale_ptr, offset_ptr, index, there, NESTED)
            if KIND == INTEGERS:
                inputs = tl.sum(tl.reshape(tl.sum(x, 1), (UNITS // RUN, RUN)), 1)[None, :]
                zero = 1.0 * (1 << (BITS - 1))
                if ZERO:
                    zero = tl.load(zero_ptr + index, mask=there, other=0).to(tl.float32)
                sums = (1 << BITS) * (sums - inputs) - zero * inputs
            sums *= scale
        total += sums
    y = tl.sum(total, 1)
    if BIAS:
        y += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, y.to(out_ptr.dtype.element_ty), mask=inside)


def gemv(x: Tensor, weight: Packed, bias: Tensor | None, out: Tensor, *, tiles: VectorTiles | None = None) -> Tensor:
    """Write x Wᵀ + bias to `out` (1, out); x (1, in) in fp32, fp16 or bf16; everything contiguous. Returns `out`.

    NotSupported for several tokens, and forms that are not `in_units`.
    """
    if x.shape[0] != 1:
        raise NotSupported(f"gemv multiplies one token, not {x.shape[0]}.", hint="Several are for gemm.")
    given = source(weight)
    tiles = tiles or vector_tiles_for(given.BITS)
    run = 4 if isinstance(weight, Palette) else gcd(given.GROUP, 4)
    _gemv[(triton.cdiv(given.n, tiles.rows),)](
        x_ptr=x,
        bias_ptr=x if bias is None else bias,
        out_ptr=out,
        **given.arguments(),
        BIAS=bias is not None,
        ROWS=tiles.rows,
        UNITS=tiles.units,
        RUN=run,
        STAGES=tiles.stages if isinstance(weight, Integers) else 1,  # lookups are not worth copying ahead
        num_warps=tiles.warps,
    )
    return out
