"""Keys and values of layers that tokens skip, from the states that they left with: all layers in one launch.

A state stands for what would enter each of these layers (CALM, Schuster et al., 2022, arXiv:2207.07061, section 3.3).
The matrices lie where the model has them, so a program finds its layer's in a table of addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

_PAIRS = 8
"""Rotated pairs of a key that a program makes, and as many times two numbers of a value."""
_TILE = 4096
"""Weights of each of the four products that a program takes at a time."""
_MIN_COLUMNS = 16


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
        COLUMNS=max(_MIN_COLUMNS, min(_TILE // pairs, triton.next_power_of_2(width))),
        BIAS=bias,
        K_NORM=k_norm,
        num_warps=8 if k_norm else 4,
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
