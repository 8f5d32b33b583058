"""y = Wx for one token, or a few: matrix times vector at the speed of memory, with what stands around it folded in.

A token's step reads every weight once, so these kernels do nothing but stream weights: each program takes a few rows
of W whole, through asynchronous copies, and adds up products in registers. Folded in: the RMSNorm before (its scale is
one number, multiplied in at the end), several matrices of one input side by side (q, k, v; no merged copy is made),
SwiGLU, bias, residual. Sums are in float32. With `overlap` a kernel starts while the one before it still runs
(programmatic dependent launch, compute capability 9 and newer).

Where a row of W fits into one tile, several tokens are taken side by side (`few`), each by programs of its own: it gets
the bits that it gets alone, and programs of one tile run together, so that the cache has it for all but the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows and columns of W that a program takes at a time, its warps, and how many such tiles are on their way.

    A row that fits into one tile is loaded while the kernel before still runs; `stages` means nothing then.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 3


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of the input: its gain (in_features) and epsilon."""

    gain: Tensor
    eps: float


FEW = 16
"""Tokens that `few` matrices take at a time."""


def few(in_features: int) -> bool:
    """Whether products with so wide an input can take several tokens at a time."""
    return in_features <= tiles_for(in_features, gated=True).columns


def tiles_for(in_features: int, gated: bool) -> Tiles:
    """What made whole steps fastest on an H200, of what docs/log.md tells."""
    if in_features <= 512 and not gated:
        return Tiles(4, 512, 1)
    return Tiles(4, 1024, 4) if in_features <= 8192 else Tiles(2, 1024, 4, stages=4)


@triton.jit
def _input(x_ptr, gain_ptr, column, width, NORM: tl.constexpr):
    """A piece of x times the norm's gain, and its squares."""
    x = tl.load(x_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    squares = x * x
    if NORM:
        x *= tl.load(gain_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    return x, squares


@triton.jit
def _scale(squares, width, eps, NORM: tl.constexpr):
    """What the norm multiplies by, from the squares of its input; 1 without."""
    return 1.0 / tl.sqrt(tl.sum(squares, 0) / width + eps) if NORM else 1.0


@triton.jit
def _gemv(
    x_ptr,
    gain_ptr,
    w0_ptr,
    w1_ptr,
    w2_ptr,
    b0_ptr,
    b1_ptr,
    b2_ptr,
    residual_ptr,
    out_ptr,
    n0,
    n1,
    n2,
    width,
    out_width,
    eps,
    TOKENS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
    # Programs of one tile follow each other.
    token, block = (tl.program_id(0) % TOKENS).to(tl.int64), tl.program_id(0) // TOKENS
    w_ptr, b_ptr, n, before = w0_ptr, b0_ptr, n0, 0
    if not GATED:
        blocks0, blocks1 = tl.cdiv(n0, ROWS), tl.cdiv(n1, ROWS)
        if block >= blocks0 + blocks1:
            w_ptr, b_ptr, n, before = w2_ptr, b2_ptr, n2, n0 + n1
            block -= blocks0 + blocks1
        elif block >= blocks0:
            w_ptr, b_ptr, n, before = w1_ptr, b1_ptr, n1, n0
            block -= blocks0
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    offset = row[:, None].to(tl.int64) * width + column[None, :]
    inside = (row < n)[:, None]
    x_ptr += token * width
    u = tl.zeros((ROWS,), tl.float32)
    if WHOLE:
        # Weights do not depend on the kernel before; its output does.
        mask = inside & (column < width)[None, :]
        w = tl.load(w_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_first")
        if GATED:
            up = tl.load(w1_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_first")
        if OVERLAP:
            gdc_wait()
        x, squares = _input(x_ptr, gain_ptr, column, width, NORM)
        scale = _scale(squares, width, eps, NORM)
        y = tl.sum(w.to(tl.float32) * x[None, :], 1) * scale
        if GATED:
            u = tl.sum(up.to(tl.float32) * x[None, :], 1) * scale
    else:
        if OVERLAP:
            gdc_wait()
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        up_total = total
        squares = tl.zeros((COLUMNS,), tl.float32)
        for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
            mask = inside & (start + column < width)[None, :]
            w = tl.load(w_ptr + offset + start, mask=mask, other=0.0, eviction_policy="evict_first")
            x, more = _input(x_ptr, gain_ptr, start + column, width, NORM)
            squares += more
            total += w.to(tl.float32) * x[None, :]
            if GATED:
                up = tl.load(w1_ptr + offset + start, mask=mask, other=0.0, eviction_policy="evict_first")
                up_total += up.to(tl.float32) * x[None, :]
        scale = _scale(squares, width, eps, NORM)
        y = tl.sum(total, 1) * scale
        u = tl.sum(up_total, 1) * scale
    if BIAS:
        y += tl.load(b_ptr + row, mask=row < n, other=0.0).to(tl.float32)
    if GATED:
        if BIAS:
            u += tl.load(b1_ptr + row, mask=row < n, other=0.0).to(tl.float32)
        y = y / (1.0 + tl.exp(-y)) * u
    at = token * out_width + before + row
    if RESIDUAL:
        y += tl.load(residual_ptr + at, mask=row < n, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=row < n)


def gemv(
    x: Tensor,
    weights: Sequence[Tensor],
    out: Tensor,
    *,
    biases: Sequence[Tensor | None] = (),
    norm: Norm | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    tiles: Tiles | None = None,
    overlap: bool = False,
) -> Tensor:
    """Write to `out` (tokens, sum of out_features) the products of x (tokens, in) with 1 to 3 matrices (out, in).

    Returns `out`. One token, or up to `FEW` where the width is `few`, or within the tiles given. With `norm` x is
    normalised first; `biases` is one a matrix, or none; with `gated` the two matrices are gate and up and the result is
    silu(gate)·up; `residual` is added, and may be `out` itself. Everything contiguous.
    """
    width = x.shape[-1]
    sizes = [weight.shape[0] for weight in weights]
    tiles = tiles or tiles_for(width, gated)
    rows = sizes[:1] if gated else sizes
    padded = [*weights, *[weights[0]] * (3 - len(weights))]
    with_bias = any(bias is not None for bias in biases)
    if with_bias and any(bias is None for bias in biases):
        raise ValueError("biases: give one for each matrix, or none")
    tokens, whole = x.shape[0], width <= tiles.columns
    if tokens > (FEW if whole else 1):
        raise ValueError(
            f"tokens: {tokens} at once are too many; allowed: {FEW if whole else 1} for a width of {width}"
        )
    some = [*biases, *[weights[0]] * (3 - len(biases))] if with_bias else padded
    counts = [*sizes, 0, 0][:3]
    _gemv[(tokens * sum(triton.cdiv(count, tiles.rows) for count in rows),)](
        x,
        norm.gain if norm else x,
        *padded,
        *some,
        residual if residual is not None else x,
        out,
        *counts,
        width,
        out.shape[-1],
        norm.eps if norm else 0.0,
        TOKENS=tokens,
        NORM=norm is not None,
        GATED=gated,
        BIAS=with_bias,
        RESIDUAL=residual is not None,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        STAGES=tiles.stages,
        WHOLE=whole,
        OVERLAP=overlap,
        num_warps=tiles.warps,
        **overlapping(overlap),
    )
    return out


def gemv_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    biases: Sequence[Tensor | None] = (),
    norm: Norm | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The same in plain PyTorch, summed in float32 (float64 for float64)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    if norm is not None:
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps) * norm.gain.to(wide)
    each = [*biases, *[None] * (len(weights) - len(biases))]
    products = [
        F.linear(y, weight.to(wide), None if bias is None else bias.to(wide))
        for weight, bias in zip(weights, each, strict=True)
    ]
    result = F.silu(products[0]) * products[1] if gated else torch.cat(products, -1)
    if residual is not None:
        result = result + residual.to(wide)
    return result.to(out_dtype or x.dtype)


@triton.jit
def _rms_norm(x_ptr, gain_ptr, out_ptr, width, eps, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    y = x / tl.sqrt(tl.sum(x * x, 0) / width + eps) * gain
    tl.store(out_ptr + row * width + column, y.to(out_ptr.dtype.element_ty), mask=column < width)


def rms_norm(x: Tensor, norm: Norm, out: Tensor) -> Tensor:
    """Write RMSNorm of x (rows, width) to `out`; contiguous."""
    padded = triton.next_power_of_2(x.shape[-1])
    warps = min(8, max(1, padded // 512))
    _rms_norm[(x.shape[0],)](x, norm.gain, out, x.shape[-1], norm.eps, WIDTH=padded, num_warps=warps)
    return out


def rms_norm_reference(x: Tensor, norm: Norm) -> Tensor:
    """The same in plain PyTorch."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps) * norm.gain.float()).to(x.dtype)


@triton.jit
def _swiglu(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=at < count)


def swiglu(gate: Tensor, up: Tensor, out: Tensor) -> Tensor:
    """Write silu(gate)·up to `out`; any shape, contiguous."""
    count = gate.numel()
    _swiglu[(triton.cdiv(count, 1024),)](gate, up, out, count, BLOCK=1024, num_warps=4)
    return out


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def overlapping(overlap: bool) -> dict[str, bool]:
    """How Triton launches a kernel that may begin while the one before it still runs: nothing where it may not."""
    return {"launch_pdl": True} if overlap else {}
