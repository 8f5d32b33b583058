"""Tiles of a quantized cache within a kernel: from codes to numbers, and back (see `quantized_cache`)."""

from __future__ import annotations

import triton
import triton.language as tl

from hayless.kernels.packed.quantize import _bytes, _rounded


@triton.jit
def _codes(at, mask, BITS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Codes (ROWS, WIDTH) as float32 from bytes at (ROWS, WIDTH · BITS / 8); 0 where the mask says no."""
    place = tl.arange(0, 8 // BITS)
    held = tl.load(at, mask=mask, other=0).to(tl.int32)
    codes = (held[:, :, None] >> (place * BITS)[None, None, :]) & ((1 << BITS) - 1)
    return tl.reshape(codes, (ROWS, WIDTH)).to(tl.float32)


@triton.jit
def _keys(
    codes_ptr,
    step_ptr,
    least_ptr,
    first,
    end,
    h0: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Channels h0 to h0 + DIM / 2 of keys (BLOCK, DIM / 2) from `first`, a multiple of the group or the block, on."""
    HALF: tl.constexpr = DIM // 2
    SHARED: tl.constexpr = min(GROUP, BLOCK)
    t = first + tl.arange(0, BLOCK)
    byte = (h0 * BITS // 8) + tl.arange(0, HALF * BITS // 8)
    mask = (t < end)[:, None]
    codes = _codes(codes_ptr + t[:, None] * (DIM * BITS // 8) + byte[None, :], mask, BITS, BLOCK, HALF)
    group = first // GROUP + tl.arange(0, BLOCK // SHARED)
    h = h0 + tl.arange(0, HALF)
    there = (group * GROUP < end)[:, None]
    at = group[:, None] * DIM + h[None, :]
    step = tl.load(step_ptr + at, mask=there, other=0.0).to(tl.float32)
    least = tl.load(least_ptr + at, mask=there, other=0.0).to(tl.float32)
    grouped = tl.reshape(codes, (BLOCK // SHARED, SHARED, HALF))
    return tl.reshape(grouped * step[:, None, :] + least[:, None, :], (BLOCK, HALF))


@triton.jit
def _values(
    codes_ptr,
    step_ptr,
    least_ptr,
    first,
    end,
    BITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Values (BLOCK, DIM) from `first` on."""
    GROUPS: tl.constexpr = DIM // CHANNELS
    t = first + tl.arange(0, BLOCK)
    byte = tl.arange(0, DIM * BITS // 8)
    mask = (t < end)[:, None]
    codes = _codes(codes_ptr + t[:, None] * (DIM * BITS // 8) + byte[None, :], mask, BITS, BLOCK, DIM)
    group = tl.arange(0, GROUPS)
    at = t[:, None] * GROUPS + group[None, :]
    step = tl.load(step_ptr + at, mask=mask, other=0.0).to(tl.float32)
    least = tl.load(least_ptr + at, mask=mask, other=0.0).to(tl.float32)
    grouped = tl.reshape(codes, (BLOCK, GROUPS, CHANNELS))
    return tl.reshape(grouped * step[:, :, None] + least[:, :, None], (BLOCK, DIM))


@triton.jit
def _quantized(x, step, least, BITS: tl.constexpr):
    """Codes of numbers, by a step and a least number of the same shape: halves to the even one."""
    scaled = tl.div_rn(x - least, tl.where(step == 0, 1.0, step))
    return _rounded(tl.minimum(tl.maximum(scaled, 0.0), (1 << BITS) - 1.0)).to(tl.int32)


@triton.jit
def _hold_keys(
    latest_ptr,
    codes_ptr,
    step_ptr,
    least_ptr,
    first,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Quantize the ring's keys, of which `first` is the first token."""
    byte = tl.arange(0, CHUNK * BITS // 8)
    for group in range(0, RESIDUAL // GROUP):
        t = group * GROUP + tl.arange(0, GROUP)
        for start in tl.static_range(0, DIM, CHUNK):
            c = start + tl.arange(0, CHUNK)
            x = tl.load(latest_ptr + t[:, None] * DIM + c[None, :]).to(tl.float32)
            least = tl.min(x, 0)
            step = tl.div_rn(tl.max(x, 0) - least, (1 << BITS) - 1.0).to(latest_ptr.dtype.element_ty)
            at = (first // GROUP + group) * DIM + c
            tl.store(step_ptr + at, step)
            tl.store(least_ptr + at, least.to(latest_ptr.dtype.element_ty))
            codes = _quantized(x, step.to(tl.float32)[None, :], least[None, :], BITS)
            at = (first + t)[:, None] * (DIM * BITS // 8) + start * BITS // 8 + byte[None, :]
            tl.store(codes_ptr + at, _bytes(codes, GROUP, CHUNK, BITS, 0))


@triton.jit
def _hold_value(
    latest_ptr,
    codes_ptr,
    step_ptr,
    least_ptr,
    token,
    BITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DIM: tl.constexpr,
):
    """Quantize the ring's value of a token."""
    GROUPS: tl.constexpr = DIM // CHANNELS
    group = tl.arange(0, GROUPS)
    channel = group[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    x = tl.load(latest_ptr + token % (RESIDUAL + 1) * DIM + channel).to(tl.float32)
    least = tl.min(x, 1)
    step = tl.div_rn(tl.max(x, 1) - least, (1 << BITS) - 1.0).to(latest_ptr.dtype.element_ty)
    tl.store(step_ptr + token * GROUPS + group, step)
    tl.store(least_ptr + token * GROUPS + group, least.to(latest_ptr.dtype.element_ty))
    codes = _quantized(x, step.to(tl.float32)[:, None], least[:, None], BITS)
    byte = tl.arange(0, DIM * BITS // 8)
    held = _bytes(tl.reshape(codes, (1, DIM)), 1, DIM, BITS, 0)
    tl.store(codes_ptr + token * (DIM * BITS // 8) + byte[None, :], held)
