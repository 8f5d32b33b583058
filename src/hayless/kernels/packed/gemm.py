"""y = Wx for several tokens and packed weights, through matrix units: values are made in registers, sums are float32.

x is laid out first by places within a unit (`spread`), so that the elements at one place of many units meet their
columns without being moved. Where a tile of the weight lies within one group its sums are scaled, else its values.
Parts of `in` that several programs take are added in a fixed order by a second kernel: the same bits every time.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.packed.formats import Integers, Packed
from hayless.kernels.packed.source import INTEGERS, PALETTE, codes_at, scales_at, source
from hayless.kernels.packed.tiles import MatrixTiles, matrix_tiles_for

_NIBBLES = """
{{
.reg .b32 low, high, t;
prmt.b32 low, $8, $9, 0x5410;
prmt.b32 high, $8, $9, 0x7632;
{}
}}
"""
_BF16 = "lop3.b32 t, {0}, 0x000F000F, 0x43004300, 0xEA;\nfma.rn.bf16x2 ${1}, t, {one}, {eight};"
_FP16 = "lop3.b32 t, {0}, 0x000F000F, 0x64006400, 0xEA;\nsub.rn.f16x2 ${1}, t, {eight};"


def _nibbles_assembly(one_place: str, **constants: str) -> str:
    """Two words of eight codes → eight registers, in each the codes at one place less 8: 2^7 + c (bf16), 2^10 + c
    (fp16) are made by putting c into a mantissa, and what is too much is taken off."""
    lines = [f"mov.b32 {name}, {value};" for name, value in constants.items()]
    names = {name: name for name in constants}
    for half, first in (("low", 0), ("high", 4)):
        for place in range(4):
            lines.append(one_place.format(half, first + place, **names))
            if place < 3:
                lines.append(f"shr.b32 {half}, {half}, 4;")
    declared = f".reg .b32 {', '.join(constants)};\n"
    return _NIBBLES.format(declared + "\n".join(lines))


BF16_NIBBLES = tl.constexpr(_nibbles_assembly(_BF16, one="0x3F803F80", eight="0xC308C308"))
_EIGHT = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r")
FP16_NIBBLES = tl.constexpr(_nibbles_assembly(_FP16, eight="0x64086408"))


@triton.jit
def _nibbles(packed, like_ptr):
    """Eight tensors of code − 8 in the dtype of x, which has 16 bits."""
    if like_ptr.dtype.element_ty == tl.bfloat16:
        found = tl.inline_asm_elementwise(
            BF16_NIBBLES,
            _EIGHT,
            [packed],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        found = tl.inline_asm_elementwise(
            FP16_NIBBLES,
            _EIGHT,
            [packed],
            (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    return found


@triton.jit
def _gemm(
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
    m,
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
    SPLITS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    inside = row < n
    unit = tl.arange(0, UNITS)
    token = tl.arange(0, TOKENS)
    at = row[:, None].to(tl.int64) * units + unit[None, :]
    x_at = unit[:, None] + token[None, :] * units
    scale_row = row.to(tl.int64) * groups
    book = book_ptr + ((row // BOOK_ROWS) << BITS)[:, None]
    each = tl.cdiv(tl.cdiv(units, UNITS), SPLITS) * UNITS
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    # Every tile of a group that holds whole tiles lies within it.
    whole: tl.constexpr = KIND != PALETTE and GROUP % UNITS == 0
    for start in tl.range(split * each, min(units, (split + 1) * each), UNITS, num_stages=STAGES):
        present = start + unit < units
        mask = inside[:, None] & present[None, :]
        packed = tl.load(codes_ptr + at + start, mask=mask, other=0, eviction_policy="evict_first").to(tl.int32)
        if XOR != 0:
            packed ^= XOR
        zero = 1.0 * (1 << (BITS - 1))
        scale = 1.0
        if KIND != PALETTE:
            if whole:
                index = (scale_row + start // GROUP)[:, None]
                there = inside[:, None]
            else:
                index = scale_row[:, None] + ((start + unit) // GROUP)[None, :]
                there = mask
            scale = scales_at(scale_ptr, second_table_ptr, second_scale_ptr, offset_ptr, index, there, NESTED)
            if ZERO:
                zero = tl.load(zero_ptr + index, mask=there, other=0).to(tl.float32)
        if ASSEMBLY:
            centred = _nibbles(packed, x_ptr)
        part = tl.zeros((ROWS, TOKENS), tl.float32)
        for p in tl.static_range(PER):
            if KIND == INTEGERS:
                if ASSEMBLY:
                    value = centred[p]
                    if ZERO:
                        value -= (zero - 8.0).to(value.dtype)
                else:
                    # 2^23 + code, exactly.
                    raised = (codes_at(packed, p, BITS, TURN) | 0x4B000000).to(tl.float32, bitcast=True)
                    value = raised - (8388608.0 + zero)
            elif KIND == PALETTE:
                value = tl.load(book + codes_at(packed, p, BITS, TURN), mask=mask, other=0.0)
            else:
                value = tl.load(book_ptr + codes_at(packed, p, BITS, TURN))
            if KIND != PALETTE and not whole:
                value = value.to(tl.float32) * scale
            x = tl.load(x_ptr + p * m * units + x_at + start, mask=present[:, None] & (token < m)[None, :], other=0.0)
            part = tl.dot(value.to(x.dtype), x, part, input_precision="ieee")
        if whole:
            part *= scale
        total += part
    if BIAS:
        total += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    out_at = (split * m + token[None, :]) * n + row[:, None]
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (token < m)[None, :])


@triton.jit
def _add_splits(parts_ptr, bias_ptr, out_ptr, n, count, BIAS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts_ptr + split * count + at, mask=mask, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + at % n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def add_splits(parts: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Write the sum of parts (splits, tokens, out) in float32, in their order, plus bias to `out`; returns it."""
    count = out.numel()
    with_bias = bias is not None
    _add_splits[(triton.cdiv(count, 512),)](
        parts, bias if with_bias else parts, out, out.shape[1], count,
        BIAS=with_bias, SPLITS=parts.shape[0], BLOCK=512, num_warps=4,
    )  # fmt: skip
    return out


def spread(x: Tensor, per: int) -> Tensor:
    """x (tokens, in) as (per, tokens, in / per): the columns at one place of each unit side by side."""
    return x.view(x.shape[0], -1, per).permute(2, 0, 1).contiguous()


def gemm(x: Tensor, weight: Packed, bias: Tensor | None, out: Tensor, *, tiles: MatrixTiles | None = None) -> Tensor:
    """Write x Wᵀ + bias to `out` (tokens, out); x (tokens, in) in fp32, fp16 or bf16; everything contiguous.

    Returns `out`. What several programs add up goes through float32 (splits, tokens, out), taken from PyTorch's
    allocator. NotSupported for forms that are not `in_units`.
    """
    given, tokens = source(weight), x.shape[0]
    tiles = tiles or matrix_tiles_for(tokens, given.n, given.units)
    split = tiles.splits > 1
    target = torch.empty(tiles.splits, *out.shape, dtype=torch.float32, device=out.device) if split else out
    _gemm[(triton.cdiv(given.n, tiles.rows), tiles.splits)](
        x_ptr=spread(x, given.PER),
        bias_ptr=x if bias is None else bias,
        out_ptr=target,
        m=tokens,
        **given.arguments(),
        BIAS=bias is not None and not split,
        SPLITS=tiles.splits,
        ASSEMBLY=_assembled(x, weight, given.PER),
        ROWS=tiles.rows,
        UNITS=tiles.units,
        TOKENS=max(16, triton.next_power_of_2(tokens)),
        STAGES=tiles.stages if isinstance(weight, Integers) else 1,  # as in gemv
        num_warps=tiles.warps,
    )
    return add_splits(target, bias, out) if split else out


def _assembled(x: Tensor, weight: Packed, per: int) -> bool:
    """Whether codes are made floats by inline PTX: words of four-bit integers, on a GPU, in 16 bits."""
    four = isinstance(weight, Integers) and weight.bits == 4 and per == 8
    return four and x.is_cuda and x.dtype is not torch.float32 and "TRITON_INTERPRET" not in os.environ
