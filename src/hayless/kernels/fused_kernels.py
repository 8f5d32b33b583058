"""RMSNorm, rotary positions and SwiGLU with their gradients in Triton, as `hayless.kernels.fused_ops` says.

All are bound by memory: each reads its inputs once and writes its results once. Shapes as there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels import linear

_PROGRAMS = 512
"""Programs that share the rows of a norm's backward pass; each sums its rows' part of the gain's gradient."""
_BLOCK = 1024


@triton.jit
def _rms_norm(x_ptr, gain_ptr, out_ptr, inverse_ptr, width, eps, GEMMA: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    there = column < width
    loaded = tl.load(x_ptr + row * width + column, mask=there, other=0.0)
    x = loaded.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    gain = tl.load(gain_ptr + column, mask=there, other=0.0).to(tl.float32)
    if GEMMA:
        y = x * inverse * (1.0 + gain)
    else:
        y = (x * inverse).to(loaded.dtype).to(tl.float32) * gain
    tl.store(out_ptr + row * width + column, y.to(out_ptr.dtype.element_ty), mask=there)
    tl.store(inverse_ptr + row, inverse)


@triton.jit
def _rms_norm_backward(
    slope_ptr,
    x_ptr,
    gain_ptr,
    inverse_ptr,
    dx_ptr,
    parts_ptr,
    rows,
    width,
    each,
    GEMMA: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    there = column < width
    gain = tl.load(gain_ptr + column, mask=there, other=0.0).to(tl.float32)
    if GEMMA:
        gain += 1.0
    total = tl.zeros((WIDTH,), tl.float32)
    for number in range(0, tl.minimum(each, rows - program * each)):
        row = program.to(tl.int64) * each + number
        at = row * width + column
        x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
        slope = tl.load(slope_ptr + at, mask=there, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr + row)
        normed = x * inverse
        inner = slope * gain
        dx = inverse * (inner - normed * (tl.sum(inner * normed, 0) / width))
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=there)
        total += slope * normed
    tl.store(parts_ptr + program.to(tl.int64) * width + column, total, mask=there)


def rms_norm(x_nw: Tensor, gain_w: Tensor, eps: float, gemma: bool) -> tuple[Tensor, Tensor]:
    """The norm of contiguous rows, and each row's 1 / √(mean(x²) + eps) in float32."""
    rows, width = x_nw.shape
    dtype = x_nw.dtype if gemma else torch.promote_types(x_nw.dtype, gain_w.dtype)
    out = torch.empty_like(x_nw, dtype=dtype)
    inverse = torch.empty(rows, dtype=torch.float32, device=x_nw.device)
    padded = triton.next_power_of_2(width)
    if rows:
        _rms_norm[(rows,)](x_nw, gain_w, out, inverse, width, eps, GEMMA=gemma, WIDTH=padded, num_warps=_warps(padded))
    return out, inverse


def rms_norm_backward(
    gradient_nw: Tensor, x_nw: Tensor, gain_w: Tensor, inverse_n: Tensor, gemma: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the gain, whose parts are summed in float32."""
    rows, width = x_nw.shape
    each = max(1, triton.cdiv(rows, _PROGRAMS))
    programs = triton.cdiv(rows, each)
    dx = torch.empty_like(x_nw)
    parts = torch.empty(programs, width, dtype=torch.float32, device=x_nw.device)
    padded = triton.next_power_of_2(width)
    if rows:
        _rms_norm_backward[(programs,)](
            gradient_nw.contiguous(),
            x_nw,
            gain_w,
            inverse_n,
            dx,
            parts,
            rows,
            width,
            each,
            GEMMA=gemma,
            WIDTH=padded,
            num_warps=_warps(padded),
        )
    return dx, parts.sum(0).to(gain_w.dtype)


@triton.jit
def _rotary(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    sequence,
    heads,
    half,
    x_row,
    x_head,
    x_position,
    out_row,
    out_head,
    out_position,
    cos_row,
    cos_position,
    BACKWARD: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    row = (tl.program_id(0) // sequence).to(tl.int64)
    position = (tl.program_id(0) % sequence).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    there = (head < heads) & (column < half)
    turn = row * cos_row + position * cos_position + column
    cos_low = tl.load(cos_ptr + turn, mask=column < half, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + turn + half, mask=column < half, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_ptr + turn, mask=column < half, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + turn + half, mask=column < half, other=0.0).to(tl.float32)
    at = row * x_row + head * x_head + position * x_position + column
    low = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + at + half, mask=there, other=0.0).to(tl.float32)
    if BACKWARD:
        first = low * cos_low + high * sin_high
        second = high * cos_high - low * sin_low
    else:
        first = low * cos_low - high * sin_low
        second = high * cos_high + low * sin_high
    to = row * out_row + head * out_head + position * out_position + column
    tl.store(out_ptr + to, first.to(out_ptr.dtype.element_ty), mask=there)
    tl.store(out_ptr + to + half, second.to(out_ptr.dtype.element_ty), mask=there)


def rotary(x_bhsd: Tensor, cos_bsd: Tensor, sin_bsd: Tensor, dtype: torch.dtype, *, backward: bool) -> Tensor:
    """The rotation, or its gradient, in `dtype` and in x's layout; a program a position, all its heads."""
    rows, heads, sequence, dim = x_bhsd.shape
    x = x_bhsd if x_bhsd.stride(-1) == 1 else x_bhsd.contiguous()
    cos, sin = cos_bsd.contiguous(), sin_bsd.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        _rotary[(rows * sequence,)](
            x,
            cos,
            sin,
            out,
            sequence,
            heads,
            dim // 2,
            *x.stride()[:3],
            *out.stride()[:3],
            cos.stride(0) if len(cos) > 1 else 0,
            cos.stride(1),
            BACKWARD=backward,
            HEADS=triton.next_power_of_2(heads),
            HALF=triton.next_power_of_2(dim // 2),
            num_warps=4,
        )
    return out


@triton.jit
def _swiglu_backward(slope_ptr, gate_ptr, up_ptr, d_gate_ptr, d_up_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    slope = tl.load(slope_ptr + at, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=there, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=there, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    d_gate = slope * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(d_gate_ptr + at, d_gate.to(d_gate_ptr.dtype.element_ty), mask=there)
    tl.store(d_up_ptr + at, (slope * gate * sigmoid).to(d_up_ptr.dtype.element_ty), mask=there)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up; contiguous."""
    out = torch.empty_like(up)
    return linear.swiglu(gate, up, out) if up.numel() else out


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; contiguous."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    if up.numel():
        blocks = triton.cdiv(up.numel(), _BLOCK)
        _swiglu_backward[(blocks,)](gradient, gate, up, d_gate, d_up, up.numel(), BLOCK=_BLOCK, num_warps=4)
    return d_gate, d_up


def _warps(padded: int) -> int:
    return min(32, max(1, padded // 256))
