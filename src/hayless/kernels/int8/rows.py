"""Rows of x as int8, its outlying columns found and listed on the device: what `plain.quantize` does, in Triton.

No shape depends on how many columns lie out, so nothing waits for the device and CUDA graphs can capture it. For few
tokens it is one launch. For many, finding, listing and quantizing are launches of their own, and listed columns are
laid side by side up to a capacity, for the product to read; those beyond it are picked out one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.int8.capacity import FEW

_EXACT = {"enable_fp_fusion": False}
"""A product and the sum that rounds it, made one, would round another way than PyTorch does."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """x without its outlying columns: int8 `codes` (tokens, in), each token's largest magnitude `scale` (tokens,)
    float32; and the numbers of those columns, the first `count` (1,) of `index` (in,), both int32, ascending.

    `kept` (tokens, capacity) holds the outlying columns side by side, zeros behind them; the capacity may be 0.
    """

    codes: Tensor
    scale: Tensor
    index: Tensor
    count: Tensor
    kept: Tensor


@triton.jit
def _round(x):
    """To the nearest whole number, of two the even one: what is added leaves no bits for fractions."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _codes(x, largest):
    """x in units of its largest magnitude over 127."""
    inverse = tl.where(largest > 0.0, tl.div_rn(127.0, tl.where(largest > 0.0, largest, 1.0)), 0.0)
    return _round(x * inverse).to(tl.int8)


@triton.jit
def _outlying(x, limit):
    """1 where a magnitude is not below the limit; what is no number counts as outlying, so that it stays none."""
    return tl.where(tl.abs(x) < limit, 0, 1)


@triton.jit
def _quantize_few(
    x_ptr, codes_ptr, scale_ptr, index_ptr, count_ptr, tokens, width, limit,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program a token; each looks at all tokens for outlying columns, and the first lists them."""
    own = tl.program_id(0)
    token, column = tl.arange(0, TOKENS), tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), tl.float32)
    before = 0
    for start in range(0, width, COLUMNS):
        at, inside = start + column, start + column < width
        mask = (token < tokens)[:, None] & inside[None, :]
        every = tl.load(x_ptr + token[:, None] * width + at[None, :], mask=mask, other=0.0).to(tl.float32)
        out = tl.max(_outlying(every, limit), 0)
        x = tl.load(x_ptr + own * width + at, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.where(out > 0, 0.0, tl.abs(x)))
        if own == 0:
            tl.store(index_ptr + before + tl.cumsum(out, 0) - out, at, mask=out > 0)
        before += tl.sum(out, 0)
    scale = tl.max(largest, 0)
    tl.store(scale_ptr + own, scale)
    if own == 0:
        tl.store(count_ptr, before)
    for start in range(0, width, COLUMNS):
        at, inside = start + column, start + column < width
        mask = (token < tokens)[:, None] & inside[None, :]
        every = tl.load(x_ptr + token[:, None] * width + at[None, :], mask=mask, other=0.0).to(tl.float32)
        out = tl.max(_outlying(every, limit), 0)
        x = tl.load(x_ptr + own * width + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(codes_ptr + own * width + at, _codes(tl.where(out > 0, 0.0, x), scale), mask=inside)


@triton.jit
def _find(x_ptr, marks_ptr, tokens, width, limit, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mark outlying columns. Several programs may mark one, all with the same number."""
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (token < tokens)[:, None] & (column < width)[None, :]
    x = tl.load(x_ptr + token[:, None].to(tl.int64) * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    out = tl.max(_outlying(x, limit), 0)
    tl.store(marks_ptr + column, out.to(tl.int8), mask=out > 0)


@triton.jit
def _list(marks_ptr, index_ptr, count_ptr, width, COLUMNS: tl.constexpr):
    """The numbers of marked columns in order, by one program."""
    column = tl.arange(0, COLUMNS)
    before = 0
    for start in range(0, width, COLUMNS):
        out = tl.load(marks_ptr + start + column, mask=start + column < width, other=0).to(tl.int32)
        tl.store(index_ptr + before + tl.cumsum(out, 0) - out, start + column, mask=out > 0)
        before += tl.sum(out, 0)
    tl.store(count_ptr, before)


@triton.jit
def _quantize(
    x_ptr, marks_ptr, index_ptr, count_ptr, codes_ptr, scale_ptr, kept_ptr, width, capacity,
    WIDTH: tl.constexpr, PICKED: tl.constexpr,
):  # fmt: skip
    """One program a token, for which all of it is in registers; outlying columns are laid side by side."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    marked = tl.load(marks_ptr + column, mask=inside, other=0) > 0
    x = tl.where(marked, 0.0, x)
    scale = tl.max(tl.abs(x), 0)
    tl.store(scale_ptr + row, scale)
    tl.store(codes_ptr + row * width + column, _codes(x, scale), mask=inside)
    count = tl.load(count_ptr)
    for start in range(0, tl.minimum(tl.cdiv(count, PICKED) * PICKED, capacity), PICKED):
        place = start + tl.arange(0, PICKED)
        at = tl.load(index_ptr + place, mask=place < count, other=0)
        picked = tl.load(x_ptr + row * width + at, mask=place < count, other=0.0)
        tl.store(kept_ptr + row * capacity + place, picked, mask=place < capacity)


@triton.jit
def _pick(w_ptr, index_ptr, count_ptr, kept_ptr, rows, width, capacity, ROWS: tl.constexpr, PICKED: tl.constexpr):
    """The listed columns of W side by side."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    place = tl.program_id(1) * PICKED + tl.arange(0, PICKED)
    count = tl.load(count_ptr)
    if tl.program_id(1) * PICKED < count:
        at = tl.load(index_ptr + place, mask=place < count, other=0)
        mask = (row < rows)[:, None] & (place < count)[None, :]
        w = tl.load(w_ptr + row[:, None] * width + at[None, :], mask=mask, other=0)
        stored = (row < rows)[:, None] & (place < capacity)[None, :]
        tl.store(kept_ptr + row[:, None] * capacity + place[None, :], w, mask=stored)


def quantize(x: Tensor, threshold: float, *, capacity: int = 0) -> Quantized:
    """Quantize x (tokens, in), contiguous. A threshold of 0 is none: only what is no finite number lies out then.

    `capacity` columns are laid side by side; 0 for up to `FEW` tokens, which are quantized in one launch.
    """
    tokens, width = x.shape
    limit = threshold or math.inf
    codes, scale = _like(x, (tokens, width), torch.int8), _like(x, (tokens,), torch.float32)
    index, count = _like(x, (width,), torch.int32), _like(x, (1,), torch.int32)
    kept = _like(x, (tokens, capacity), x.dtype)
    if tokens <= FEW and not capacity:
        padded = triton.next_power_of_2(tokens)
        block = min(1024, triton.next_power_of_2(width))
        _quantize_few[(tokens,)](
            x, codes, scale, index, count, tokens, width, limit, TOKENS=padded, COLUMNS=block, num_warps=8, **_EXACT
        )
        return Quantized(codes, scale, index, count, kept)
    marks = torch.zeros(width, dtype=torch.int8, device=x.device)
    padded = triton.next_power_of_2(width)
    _find[(triton.cdiv(width, 128), triton.cdiv(tokens, 64))](
        x, marks, tokens, width, limit, TOKENS=64, COLUMNS=128, num_warps=4
    )
    _list[(1,)](marks, index, count, width, COLUMNS=min(4096, padded), num_warps=8)
    warps = min(16, max(1, padded // 1024))
    _quantize[(tokens,)](
        x, marks, index, count, codes, scale, kept, width, capacity, WIDTH=padded, PICKED=32, num_warps=warps, **_EXACT
    )
    return Quantized(codes, scale, index, count, kept)


def picked(weight: Tensor, found: Quantized) -> Tensor:
    """The outlying columns of W, int8 (out, in), laid side by side as those of x are: (out, capacity)."""
    (rows, width), capacity = weight.shape, found.kept.shape[1]
    kept = _like(weight, (rows, capacity), torch.int8)
    if capacity:
        grid = (triton.cdiv(rows, 64), triton.cdiv(capacity, 32))
        _pick[grid](weight, found.index, found.count, kept, rows, width, capacity, ROWS=64, PICKED=32, num_warps=4)
    return kept


def _like(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device)
