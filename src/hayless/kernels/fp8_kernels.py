"""Rows of a matrix as e4m3, and its columns laid as rows, in Triton: to the bit what `hayless.kernels.fp8` says.

PyTorch reads a matrix twice and writes it once for that, transposed columns once more. Here a row is read once and in
registers while its largest magnitude is found; a matrix of weights, of which columns are asked for, is read twice.
Codes are made of the bits of a float32, because Triton's interpreter rounds to e4m3 otherwise than devices do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.fp8 import LARGEST, LEAST

WIDEST = 65536
"""Rows up to this width fit into one program."""

_TILE = 64
_EXACT = {"enable_fp_fusion": False}
"""A product and the sum that rounds it, made one, would round another way than PyTorch does."""


@triton.jit
def _codes(quotient):
    """Bytes of the nearest e4m3, of two the even one; what is no number stays none."""
    sign = (quotient.to(tl.int32, bitcast=True) >> 24) & 0x80
    size = tl.abs(quotient)
    bits = size.to(tl.int32, bitcast=True)
    # Of 23 bits of mantissa 3 stay, and exponents start at -6 instead of -126.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2⁻⁶ codes count steps of 2⁻⁹; what is added leaves no bits for fractions.
    small = (size * 512.0 + 8388608.0).to(tl.int32, bitcast=True) & 15
    code = tl.where(size < 0.015625, small, tl.where(size < 464.0, normal, 0x7F))
    return (sign | code).to(tl.uint8)


@triton.jit
def _rows(x_ptr, codes_ptr, scale_ptr, width, LARGEST: tl.constexpr, LEAST: tl.constexpr, WIDTH: tl.constexpr):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 0)
    scale = tl.where(largest == 0.0, 1.0, tl.maximum(tl.div_rn(largest, LARGEST), LEAST))
    # The largest of numbers passes over what is none.
    scale = tl.where(tl.max((x != x).to(tl.int32), 0) > 0, float("nan"), scale)
    tl.store(scale_ptr + row, scale)
    tl.store(codes_ptr + row * width + column, _codes(x * tl.div_rn(1.0, scale)), mask=inside)


@triton.jit
def _columns(w_ptr, scale_ptr, codes_ptr, rows, columns, TILE: tl.constexpr):
    """One program a square of W, which it writes transposed."""
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    w = tl.load(w_ptr + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + column, mask=column < columns, other=1.0)
    codes = tl.trans(_codes(w * tl.div_rn(1.0, scale)[None, :]))
    tl.store(codes_ptr + column[:, None] * rows + row[None, :], codes, mask=tl.trans(inside))


def rows_quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x (n, width), contiguous and up to `WIDEST` wide, as bytes, and each row's scale (n,) float32."""
    rows, width = x.shape
    codes = torch.empty((rows, width), dtype=torch.uint8, device=x.device)
    scale = torch.empty((rows,), dtype=torch.float32, device=x.device)
    if rows:
        padded = triton.next_power_of_2(width)
        warps = min(16, max(1, padded // 1024))
        _rows[(rows,)](x, codes, scale, width, LARGEST=LARGEST, LEAST=LEAST, WIDTH=padded, num_warps=warps, **_EXACT)
    return codes, scale


def columns_quantized(weight: Tensor, scale: Tensor) -> Tensor:
    """Codes of W's (rows, columns) columns, contiguous, by their scale (columns,), as bytes (columns, rows)."""
    rows, columns = weight.shape
    codes = torch.empty((columns, rows), dtype=torch.uint8, device=weight.device)
    if weight.numel():
        grid = (triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE))
        _columns[grid](weight, scale, codes, rows, columns, TILE=_TILE, num_warps=4, **_EXACT)
    return codes
