"""Where tokens leave a model in captured steps: how sure it is, who leaves, and keys and values of what is skipped.

`look` asks each row behind a layer how sure the model is and marks those that leave; `keep` writes keys and values of
the layers behind from the states that rows left with (CALM, Schuster et al., 2022, arXiv:2207.07061, section 3.3), all
of them in one launch; `hold` gives rows that have left their state back where others went on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hayless.kernels.linear import Norm, overlapping

Kind = Literal["softmax", "state", "classifier"]
_BLOCK = 4096
_MIN_COLUMNS = 16
_COLUMNS = 512
_PAIRS = 8
"""Rotated pairs of a key that a program makes, and as many times two numbers of a value."""


class Leaving:
    """What is known of the rows of a step while it goes through the layers."""

    def __init__(self, rows: int, exits: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.left_b = torch.zeros(rows, dtype=torch.int32, device=device)
        """1 where a row has left."""
        self.kept_bh = torch.zeros(rows, width, dtype=dtype, device=device)
        """States that rows left with."""
        self.shown_bh = torch.zeros(rows, width, dtype=dtype, device=device)
        """What the head is shown of them."""
        self.going_nb = torch.zeros(exits, rows, dtype=torch.int32, device=device)
        """1 where an active row went on behind an exit."""


@dataclass(frozen=True, slots=True)
class Line:
    """A classifier (confidence `classifier`): σ(weight·norm(x) + bias), weight (h,) and bias () in float32."""

    weight: Tensor
    bias: Tensor
    norm: Norm


@triton.jit
def _softmax_gap(logits_ptr, entries, BLOCK: tl.constexpr):
    """By how much the likeliest entry's probability is larger than the second's."""
    at = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    second = best
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        x = tl.load(logits_ptr + start + at, mask=start + at < entries, other=float("-inf")).to(tl.float32)
        new = tl.maximum(best, x)
        second = tl.maximum(second, tl.minimum(best, x))
        # Where nothing finite was seen yet, exp(-inf - -inf) would be NaN.
        kept = tl.where(best == float("-inf"), total, total * tl.exp(best - new))
        total = kept + tl.where(x == float("-inf"), 0.0, tl.exp(x - new))
        best = new
    top = tl.max(best, 0)
    where = tl.min(tl.where(best == top, at, BLOCK), 0)
    next_top = tl.max(tl.where(at == where, second, best), 0)
    sums = tl.sum(tl.where(best == float("-inf"), total, total * tl.exp(best - top)), 0)
    return (1.0 - tl.exp(next_top - top)) / sums


@triton.jit(do_not_specialize=["layer", "depth"])
def _look(
    x_ptr,
    shown_ptr,
    before_ptr,
    logits_ptr,
    gain_ptr,
    line_ptr,
    bias_ptr,
    active_ptr,
    layers_ptr,
    left_ptr,
    kept_ptr,
    kept_shown_ptr,
    going_ptr,
    threshold,
    layer,
    depth,
    width,
    entries,
    eps,
    KIND: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    at = row.to(tl.int64) * width + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    shown = tl.load(shown_ptr + at, mask=inside, other=0.0)
    if KIND == "softmax":
        sure = _softmax_gap(logits_ptr + row.to(tl.int64) * entries, entries, BLOCK)
    elif KIND == "state":
        wide, before = x.to(tl.float32), tl.load(before_ptr + at, mask=inside, other=0.0).to(tl.float32)
        lengths = tl.maximum(tl.sqrt(tl.sum(wide * wide, 0)), 1e-8) * tl.maximum(
            tl.sqrt(tl.sum(before * before, 0)), 1e-8
        )
        sure = tl.minimum(tl.maximum(tl.sum(wide * before, 0) / lengths, 0.0), 1.0)
    else:
        wide = shown.to(tl.float32)
        gained = wide * tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
        normed = gained / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
        line = tl.load(line_ptr + column, mask=inside, other=0.0)
        sure = tl.sum(normed.to(x_ptr.dtype.element_ty).to(tl.float32) * line, 0) + tl.load(bias_ptr)
        sure = 1.0 / (1.0 + tl.exp(-sure))
    leaves = sure >= threshold
    if FIRST:
        left = leaves.to(tl.int32)
        tl.store(layers_ptr + row, tl.where(leaves, layer, depth))
    else:
        before_left = tl.load(left_ptr + row)
        left = tl.maximum(before_left, leaves.to(tl.int32))
        tl.store(layers_ptr + row, layer, mask=left > before_left)
    tl.store(left_ptr + row, left)
    tl.store(kept_ptr + at, x, mask=inside)
    tl.store(kept_shown_ptr + at, shown, mask=inside)
    tl.store(going_ptr + row, tl.where(left == 0, tl.load(active_ptr + row), 0))


def look(
    kind: Kind,
    layer: int,
    exit: int,
    x: Tensor,
    shown: Tensor,
    leaving: Leaving,
    active: Tensor,
    layers: Tensor,
    threshold: float,
    *,
    depth: int,
    logits: Tensor | None = None,
    before: Tensor | None = None,
    line: Line | None = None,
    overlap: bool = False,
) -> None:
    """Let rows leave behind layer `layer`, the exit of number `exit`, where confidence is at least `threshold`.

    x and shown (rows, h): the states there and what the head is shown of them, where rows that left before are held
    back already; active (rows,) int32; layers (rows,) int32 gets `layer` where a row leaves, and `depth` at the first
    exit where it does not. softmax takes the head's `logits` (rows, v) of `shown`, state the states `before` the layer,
    classifier its `line`. The first exit takes no row for one that has left. All contiguous.
    """
    rows, width = x.shape
    given = x if line is None else line.weight
    _look[(rows,)](
        x,
        shown,
        x if before is None else before,
        x if logits is None else logits,
        x if line is None else line.norm.gain,
        given,
        given if line is None else line.bias,
        active,
        layers,
        leaving.left_b,
        leaving.kept_bh,
        leaving.shown_bh,
        leaving.going_nb[exit],
        threshold,
        layer,
        depth,
        width,
        0 if logits is None else logits.shape[1],
        0.0 if line is None else line.norm.eps,
        KIND=kind,
        FIRST=exit == 0,
        BLOCK=_BLOCK if logits is None else min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        WIDTH=triton.next_power_of_2(width),
        OVERLAP=overlap,
        num_warps=8 if kind == "softmax" else 4,
        **overlapping(overlap),
    )


@triton.jit
def _hold(x_ptr, kept_ptr, left_ptr, width, WIDTH: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    at = row.to(tl.int64) * width + column
    inside = column < tl.where(tl.load(left_ptr + row) != 0, width, 0)
    tl.store(x_ptr + at, tl.load(kept_ptr + at, mask=inside, other=0.0), mask=inside)


def hold(x: Tensor, kept: Tensor, left: Tensor, *, overlap: bool = False) -> None:
    """Give rows of x (rows, h) that have left what was kept of them (rows, h). Contiguous."""
    rows, width = x.shape
    padded = triton.next_power_of_2(width)
    _hold[(rows,)](x, kept, left, width, WIDTH=padded, OVERLAP=overlap, num_warps=4, **overlapping(overlap))


@dataclass(frozen=True, slots=True)
class Keys:
    """What makes a layer's keys and values: matrices (kv_width, h), biases, gains of the norms before and of keys."""

    gain: Tensor
    k: Tensor
    v: Tensor
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    k_gain: Tensor | None = None


def table_of(layers: Sequence[Keys], device: torch.device) -> Tensor:
    """Where the tensors of each layer lie (layers, 6) int64, as `keep` reads them; 0 for one that is not there."""
    each = [(one.gain, one.k, one.v, one.k_bias, one.v_bias, one.k_gain) for one in layers]
    found = [[0 if tensor is None else tensor.data_ptr() for tensor in tensors] for tensors in each]
    return torch.tensor(found, dtype=torch.int64, device=device)


@triton.jit
def _address(table_ptr, number, like_ptr):
    """The tensor of this number, of the type of another."""
    return tl.multiple_of(tl.load(table_ptr + number), 16).to(like_ptr.dtype)


@triton.jit
def _product(w_ptr, row, y, column, there, width):
    """Products of rows of W with a piece of y."""
    w = tl.load(w_ptr + row[:, None].to(tl.int64) * width + column[None, :], mask=there[None, :], other=0.0)
    return tl.sum(w.to(tl.float32) * y[None, :], 1)


@triton.jit(do_not_specialize=["first"])
def _keep(
    x_ptr,
    table_ptr,
    cos_ptr,
    sin_ptr,
    lengths_ptr,
    k_cache_ptr,
    v_cache_ptr,
    first,
    width,
    capacity,
    eps,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    K_NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    HALF: tl.constexpr = DIM // 2
    layer, row = first + tl.program_id(0), tl.program_id(2)
    head, piece = tl.program_id(1) // tl.cdiv(HALF, PAIRS), tl.program_id(1) % tl.cdiv(HALF, PAIRS)
    table_ptr += layer * 6
    gain_ptr, k_ptr, v_ptr = _address(table_ptr, 0, x_ptr), _address(table_ptr, 1, x_ptr), _address(table_ptr, 2, x_ptr)
    pair = piece * PAIRS + tl.arange(0, PAIRS)
    real = pair < HALF
    low = head * DIM + tl.where(real, pair, 0)
    high = low + HALF
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    k_low = tl.zeros((PAIRS,), tl.float32)
    k_high, v_low, v_high = k_low, k_low, k_low
    squares = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < width
        x = tl.load(x_ptr + row.to(tl.int64) * width + column, mask=there, other=0.0).to(tl.float32)
        squares += x * x
        y = x * tl.load(gain_ptr + column, mask=there, other=0.0).to(tl.float32)
        k_low += _product(k_ptr, low, y, column, there, width)
        k_high += _product(k_ptr, high, y, column, there, width)
        v_low += _product(v_ptr, low, y, column, there, width)
        v_high += _product(v_ptr, high, y, column, there, width)
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / width + eps)
    k_low, k_high, v_low, v_high = k_low * scale, k_high * scale, v_low * scale, v_high * scale
    if BIAS:
        k_bias_ptr, v_bias_ptr = _address(table_ptr, 3, x_ptr), _address(table_ptr, 4, x_ptr)
        k_low += tl.load(k_bias_ptr + low).to(tl.float32)
        k_high += tl.load(k_bias_ptr + high).to(tl.float32)
        v_low += tl.load(v_bias_ptr + low).to(tl.float32)
        v_high += tl.load(v_bias_ptr + high).to(tl.float32)
    dtype = k_cache_ptr.dtype.element_ty
    # As a step rounds them between its kernels.
    k_low, k_high = k_low.to(dtype).to(tl.float32), k_high.to(dtype).to(tl.float32)
    if K_NORM:
        k_gain_ptr = _address(table_ptr, 5, x_ptr)
        k_squares = tl.where(real, k_low * k_low + k_high * k_high, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(k_squares, 0) / DIM + eps)
        k_low *= inverse * tl.load(k_gain_ptr + pair, mask=real, other=0.0).to(tl.float32)
        k_high *= inverse * tl.load(k_gain_ptr + HALF + pair, mask=real, other=0.0).to(tl.float32)
    length = tl.load(lengths_ptr + row)
    cos = tl.load(cos_ptr + length * HALF + pair, mask=real, other=0.0)
    sin = tl.load(sin_ptr + length * HALF + pair, mask=real, other=0.0)
    base = ((layer * ROWS + row) * HEADS + head).to(tl.int64) * capacity * DIM + length * DIM + pair
    tl.store(k_cache_ptr + base, (k_low * cos - k_high * sin).to(dtype), mask=real)
    tl.store(k_cache_ptr + base + HALF, (k_high * cos + k_low * sin).to(dtype), mask=real)
    tl.store(v_cache_ptr + base, v_low.to(dtype), mask=real)
    tl.store(v_cache_ptr + base + HALF, v_high.to(dtype), mask=real)


def keep(
    x: Tensor,
    table: Tensor,
    first: int,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    eps: float,
    bias: bool,
    k_norm: bool,
    overlap: bool = False,
) -> None:
    """Write keys and values of all layers from `first` on behind `lengths`, as if x (rows, h) entered each of them.

    `table` is `table_of` all layers, `bias` and `k_norm` whether they have those; cos, sin (places, dim/2) float32;
    lengths (rows,) int32; caches (layers, rows, kv_heads, capacity, dim). Contiguous; weights in x's dtype.
    """
    rows, width = x.shape
    layers, _, heads, capacity, dim = k_cache.shape
    half = dim // 2
    pairs = triton.next_power_of_2(half) if k_norm else min(_PAIRS, triton.next_power_of_2(half))
    _keep[(layers - first, heads * triton.cdiv(half, pairs), rows)](
        x,
        table,
        cos,
        sin,
        lengths,
        k_cache,
        v_cache,
        first,
        width,
        capacity,
        eps,
        ROWS=rows,
        HEADS=heads,
        DIM=dim,
        PAIRS=pairs,
        COLUMNS=max(_MIN_COLUMNS, min(_COLUMNS, triton.next_power_of_2(width))),
        BIAS=bias,
        K_NORM=k_norm,
        OVERLAP=overlap,
        num_warps=4,
        **overlapping(overlap),
    )


def keep_reference(
    x: Tensor,
    layers: Sequence[Keys],
    first: int,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    eps: float,
) -> None:
    """The same in plain PyTorch, row by row."""
    heads, dim = k_cache.shape[2], k_cache.shape[4]
    for number, one in enumerate(layers[first:], first):
        y = _normed(x, one.gain, eps)
        k = F.linear(y, one.k.float(), None if one.k_bias is None else one.k_bias.float()).to(x.dtype).float()
        v = F.linear(y, one.v.float(), None if one.v_bias is None else one.v_bias.float())
        k, v = k.unflatten(1, (heads, dim)), v.unflatten(1, (heads, dim))
        k = k if one.k_gain is None else _normed(k, one.k_gain, eps)
        for row, length in enumerate(lengths.tolist()):
            low, high = k[row].chunk(2, -1)
            turned = low * cos[length] - high * sin[length], high * cos[length] + low * sin[length]
            k_cache[number, row, :, length] = torch.cat(turned, -1)
            v_cache[number, row, :, length] = v[row]


def _normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain.float()
