"""What stands between a block's matrix products, each as one kernel forward and one backward: RMSNorm, rotary positions
and SwiGLU. Plain PyTorch computes the same, and saves the same, where there is no Triton.

Eager PyTorch takes six kernels for a norm, five for a rotation and two for SwiGLU, and keeps what they hand each other.
Here a norm keeps its input and one number a row, a rotation nothing, SwiGLU its two inputs; arithmetic is in float32 at
least, rounded once. Shapes: n rows, w width; b rows of s positions, h heads, d a head's width.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, gain_w: Tensor, eps: float, *, gemma: bool = False) -> Tensor:
    """x / √(mean(x²) + eps), in x's dtype, times the gain; Gemma's is (1 + gain), multiplied before rounding."""
    # As x lies in memory, so that heads behind tokens are neither copied nor put into another order.
    strides = x.stride()
    order = [*sorted(range(x.ndim - 1), key=lambda dim: -strides[dim]), x.ndim - 1]
    found: Tensor = _RmsNorm.apply(x.permute(order), gain_w, eps, gemma)
    return found.permute([order.index(dim) for dim in range(x.ndim)])


def rotary(x_bhsd: Tensor, cos_bsd: Tensor, sin_bsd: Tensor) -> Tensor:
    """x · cos + (−second half, first half of x) · sin for each head (Su et al., 2021, arXiv:2104.09864).

    `cos` and `sin` may have one row for all; the layout of x in memory is kept.
    """
    found: Tensor = _Rotary.apply(x_bhsd, cos_bsd, sin_bsd)
    return found


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer, 2020, arXiv:2002.05202)."""
    found: Tensor = _SwiGlu.apply(gate, up)
    return found


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, gemma: bool) -> Tensor:
        x_nw = x.reshape(-1, x.shape[-1])
        out_nw, inverse_n = _of(x).rms_norm(x_nw, gain, eps, gemma)
        ctx.save_for_backward(x_nw, gain, inverse_n)
        ctx.gemma = gemma
        return out_nw.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_nw, gain, inverse_n = ctx.saved_tensors
        gradient_nw = gradient.reshape(x_nw.shape)
        dx_nw, d_gain = _of(x_nw).rms_norm_backward(gradient_nw, x_nw, gain, inverse_n, ctx.gemma)
        return dx_nw.view(gradient.shape), d_gain, None, None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        found: Tensor = _of(x).rotary(x, cos, sin, torch.promote_types(x.dtype, cos.dtype), backward=False)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _of(gradient).rotary(gradient, cos, sin, ctx.dtype, backward=True), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        found: Tensor = _of(gate).swiglu(gate, up)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        d_gate, d_up = _of(gradient).swiglu_backward(gradient.contiguous(), *ctx.saved_tensors)
        return d_gate, d_up


def _of(x: Tensor) -> type[Reference] | ModuleType:
    """Who computes: the kernels on GPUs that have Triton, else plain PyTorch."""
    if x.is_cuda and x.dtype is not torch.float64:
        try:
            from hayless.kernels import fused_kernels
        except ImportError:
            return Reference
        return fused_kernels
    return Reference


class Reference:
    """What `hayless.kernels.fused_kernels` computes, in plain PyTorch and in float64 too."""

    @staticmethod
    def rms_norm(x_nw: Tensor, gain_w: Tensor, eps: float, gemma: bool) -> tuple[Tensor, Tensor]:
        """The norm, and each row's 1 / √(mean(x²) + eps)."""
        wide = _wide(x_nw)
        inverse_n = torch.rsqrt(wide.square().mean(-1) + eps)
        normed = wide * inverse_n[:, None]
        if gemma:
            return (normed * (1 + _wide(gain_w))).to(x_nw.dtype), inverse_n
        return gain_w * normed.to(x_nw.dtype), inverse_n

    @staticmethod
    def rms_norm_backward(
        gradient_nw: Tensor, x_nw: Tensor, gain_w: Tensor, inverse_n: Tensor, gemma: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and of the gain."""
        slope, normed = _wide(gradient_nw), _wide(x_nw) * inverse_n[:, None]
        inner = slope * (_wide(gain_w) + (1 if gemma else 0))
        dx = inverse_n[:, None] * (inner - normed * (inner * normed).mean(-1, keepdim=True))
        return dx.to(x_nw.dtype), (slope * normed).sum(0).to(gain_w.dtype)

    @staticmethod
    def rotary(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, *, backward: bool) -> Tensor:
        """The rotation, or its gradient, in `dtype` and in x's layout."""
        half = x.shape[-1] // 2
        (low, high), (cos_low, cos_high), (sin_low, sin_high) = (
            _wide(each).split(half, -1) for each in (x, cos.unsqueeze(1), sin.unsqueeze(1))
        )
        if backward:
            parts = low * cos_low + high * sin_high, high * cos_high - low * sin_low
        else:
            parts = low * cos_low - high * sin_low, high * cos_high + low * sin_high
        return torch.empty_like(x, dtype=dtype).copy_(torch.cat(parts, -1))

    @staticmethod
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) · up."""
        return (F.silu(_wide(gate)) * _wide(up)).to(up.dtype)

    @staticmethod
    def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        slope, x = _wide(gradient), _wide(gate)
        sigmoid = torch.sigmoid(x)
        d_gate = slope * _wide(up) * sigmoid * (1 + x * (1 - sigmoid))
        return d_gate.to(gate.dtype), (slope * x * sigmoid).to(up.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
