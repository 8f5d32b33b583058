"""x·Wᵀ + b for a W of int8 in one kernel: int8 products, those of outlying columns in 16 bits, scales and bias.

W is the left factor: its rows fill the 64 lines that Hopper's wgmma wants, and 16 tokens are enough on the other side,
so that one kernel serves a decode step, which takes as long as it reads W, and thousands of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from hayless.kernels.compiled import is_recent
from hayless.kernels.int8.capacity import capacity_of
from hayless.kernels.int8.rows import picked, quantize
from hayless.kernels.int8.tiles import Tiles, tiles_for


@triton.jit
def _product(
    codes_ptr, w_ptr, codes_tma, w_tma, x_ptr, kept_x_ptr, kept_w_ptr, index_ptr, count_ptr,
    scale_ptr, w_scale_ptr, bias_ptr, out_ptr, tokens, rows, width, capacity,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, PICKED: tl.constexpr, STAGES: tl.constexpr,
    GROUP: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """A tile (rows of W, tokens): int8 products, then those of outlying columns, then scales and bias."""
    blocks = tl.cdiv(rows, ROWS)
    together = GROUP * blocks
    first = tl.program_id(0) // together * GROUP
    size = tl.minimum(tl.cdiv(tokens, TOKENS) - first, GROUP)
    row0 = tl.program_id(0) % together // size * ROWS
    token0 = (first + tl.program_id(0) % together % size) * TOKENS
    row, token = row0 + tl.arange(0, ROWS), token0 + tl.arange(0, TOKENS)
    row_inside, token_inside = row < rows, token < tokens
    # What lies beyond the last row or token is read from the last, and not stored.
    row_at = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * width
    token_at = tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * width
    column = tl.arange(0, COLUMNS)[None, :]
    sums = tl.zeros((ROWS, TOKENS), tl.int32)
    for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
        if TMA:
            w = w_tma.load([row0, start])
            x = codes_tma.load([token0, start])
        elif EVEN:
            w = tl.load(w_ptr + row_at + start + column)
            x = tl.load(codes_ptr + token_at + start + column)
        else:
            w = tl.load(w_ptr + row_at + start + column, mask=start + column < width, other=0)
            x = tl.load(codes_ptr + token_at + start + column, mask=start + column < width, other=0)
        sums = tl.dot(w, tl.trans(x), sums, out_dtype=tl.int32)
    count = tl.load(count_ptr)
    near = tl.minimum(count, capacity)
    # From here on in units of W's scale alone, so that one tile of sums is enough.
    scale = tl.load(scale_ptr + token, mask=token_inside, other=0.0) / 127.0
    y = sums.to(tl.float32) * scale[None, :]
    for start in range(0, near, PICKED):
        place = start + tl.arange(0, PICKED)[None, :]
        w = tl.load(kept_w_ptr + row.to(tl.int64)[:, None] * capacity + place, row_inside[:, None] & (place < near), 0)
        at = token.to(tl.int64)[:, None] * capacity + place
        x = tl.load(kept_x_ptr + at, token_inside[:, None] & (place < near), 0.0)
        y = tl.dot(w.to(x.dtype), tl.trans(x), y, input_precision="ieee")
    for start in range(near, count, PICKED):
        place = start + tl.arange(0, PICKED)
        at = tl.load(index_ptr + place, mask=place < count, other=0)[None, :]
        w = tl.load(w_ptr + row_at + at, mask=(place < count)[None, :], other=0)
        x = tl.load(x_ptr + token_at + at, mask=(place < count)[None, :], other=0.0)
        y = tl.dot(w.to(x.dtype), tl.trans(x), y, input_precision="ieee")
    w_scale = tl.load(w_scale_ptr + row, mask=row_inside, other=0.0) / 127.0
    y *= w_scale[:, None]
    if BIAS:
        y += tl.load(bias_ptr + row, mask=row_inside, other=0.0).to(tl.float32)[:, None]
    at = token.to(tl.int64)[:, None] * rows + row[None, :]
    mask = token_inside[:, None] & row_inside[None, :]
    tl.store(out_ptr + at, tl.trans(y).to(out_ptr.dtype.element_ty), mask=mask)


def product(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    threshold: float,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """x (tokens, in) · Wᵀ + bias → (tokens, out) in x's dtype.

    `weight` is int8 (out, in), `weight_scale` (out,) float32 the largest magnitude of each row, `bias` (out,) of any
    dtype. A threshold of 0 is none. Everything contiguous, and at least one token, row and column.
    """
    (tokens, width), rows = x.shape, weight.shape[0]
    tiles = tiles or tiles_for(tokens, rows)
    found = quantize(x, threshold, capacity=capacity_of(tokens, width))
    kept = picked(weight, found)
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    tma = tiles.tma and (is_recent(x) or not x.is_cuda) and width % 16 == 0
    _product[(triton.cdiv(rows, tiles.rows) * triton.cdiv(tokens, tiles.tokens),)](
        found.codes,
        weight,
        _described(found.codes, tiles.tokens, tiles.columns) if tma else found.codes,
        _described(weight, tiles.rows, tiles.columns) if tma else weight,
        x,
        found.kept,
        kept,
        found.index,
        found.count,
        found.scale,
        weight_scale,
        weight_scale if bias is None else bias,
        out,
        tokens,
        rows,
        width,
        kept.shape[1],
        ROWS=tiles.rows,
        TOKENS=tiles.tokens,
        COLUMNS=tiles.columns,
        PICKED=32,
        STAGES=tiles.stages,
        GROUP=tiles.group,
        BIAS=bias is not None,
        EVEN=width % tiles.columns == 0,
        TMA=tma,
        num_warps=tiles.warps,
    )
    return out


def _described(x: Tensor, rows: int, columns: int) -> Any:
    return TensorDescriptor.from_tensor(x, [rows, columns])
