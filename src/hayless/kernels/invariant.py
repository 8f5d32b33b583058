"""Y = XWᵀ whose rows do not depend on each other, to the bit: how many tokens there are changes nothing of one of them.

Libraries choose tiles, and how many programs share a sum, by the shape of X; so a token's product changes in its last
bits with the tokens beside it. Here tiles are of one size and a sum is one program's, from the first column to the
last; a token is one row of a tile, whoever else is in it (He and Thinking Machines Lab, *Defeating Nondeterminism in
LLM Inference*, 2025). The price is what a choice by shape would have gained.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

TOKENS, ROWS, COLUMNS = 16, 32, 128
"""Tokens and rows of W in a tile, and columns of both that are taken at a time. Never chosen by a shape."""
SPLITS = 8
"""Programs that share a row's keys in `decode_attention`; with this number a row's bits are its own there, too."""


@triton.jit(do_not_specialize=["tokens"])
def _linear(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    tokens,
    out_features,
    width,
    x_stride,
    out_stride,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    x_at = x_ptr + token[:, None].to(tl.int64) * x_stride + column[None, :]
    w_at = w_ptr + row[:, None].to(tl.int64) * width + column[None, :]
    y = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, width, COLUMNS):
        inside = (start + column < width)[None, :]
        x = tl.load(x_at + start, mask=(token < tokens)[:, None] & inside, other=0.0)
        w = tl.load(w_at + start, mask=(row < out_features)[:, None] & inside, other=0.0)
        y = tl.dot(x, tl.trans(w), y, input_precision="ieee")
    if BIAS:
        y += tl.load(bias_ptr + row, mask=row < out_features, other=0.0).to(tl.float32)[None, :]
    at = token[:, None].to(tl.int64) * out_stride + row[None, :]
    mask = (token < tokens)[:, None] & (row < out_features)[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def linear(
    x: Tensor, weight: Tensor, out: Tensor, *, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Write x (tokens, in) times `weight` (out, in), with `bias` (out,) and `residual` added, to `out` (tokens, out).

    x and `weight` have one dtype; sums are in float32. Rows of x and of `out` may be strided, those of `residual` as
    those of `out`, which it may be; `weight` is contiguous. Any number of tokens; each gets the same bits among any
    others (in Triton's interpreter: at the same place of a tile).
    """
    tokens, width = x.shape
    if residual is not None and residual.stride() != out.stride():
        raise ValueError(f"residual: strides {residual.stride()} are not those of out, {out.stride()}")
    _linear[(triton.cdiv(weight.shape[0], ROWS), triton.cdiv(tokens, TOKENS))](
        x,
        weight,
        weight if bias is None else bias,
        x if residual is None else residual,
        out,
        tokens,
        weight.shape[0],
        width,
        x.stride(0),
        out.stride(0),
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        TOKENS=TOKENS,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=4,
        num_stages=3,
    )
    return out


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """The same in plain PyTorch, without its promise."""
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return (y if residual is None else y + residual.float()).to(x.dtype)
