"""Products of 8-bit floats (e4m3) with a scale for each row of both factors, by PyTorch's own kernel.

y = x·Wᵀ + b. Each token of x and each output channel of W is divided by its scale, its largest magnitude over 448, the
largest number of e4m3 (Micikevicius et al. 2022, arXiv:2209.05433), and rounded; sums are of products of those, in
float32. `torch._scaled_mm` does that on NVIDIA GPUs of compute capability 8.9 and later; elsewhere the same numbers are
multiplied as what they are in a wider dtype, which takes the time of that dtype and gives the same to its rounding.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
CAPABILITY = (8, 9)
"""The compute capability from which on tensor cores multiply e4m3."""

EVEN = 16
"""Both widths of W must be a multiple of this for the kernel."""
LEAST = 2.0**-120
"""No scale is smaller, so that one over it is a number; rows below 10⁻³³ get fewer bits."""
_SHRINK = 1 / 512
"""A power of two that keeps products of codes within the range of float16."""


def rows_quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes e4m3 of x (…, width) and each row's scale (…,) float32: x ≈ codes · scale."""
    width = x.shape[-1]
    kernels = _kernels(x)
    if kernels is None or not 0 < width <= kernels.WIDEST:
        scale = _scale(x, -1)
        return _plain(x, scale[..., None]), scale
    codes, scale = kernels.rows_quantized(x.reshape(-1, width).contiguous())
    return codes.view(DTYPE).view(x.shape), scale.view(x.shape[:-1])


def columns_quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes e4m3 of the columns of W (rows, columns), each laid as a row, and their scales: of Wᵀ `rows_quantized`."""
    scale = _scale(weight, 0)
    kernels = _kernels(weight)
    if kernels is None:
        return _plain(weight.t().contiguous(), scale[:, None]), scale
    return kernels.columns_quantized(weight.contiguous(), scale).view(DTYPE), scale


def _scale(x: Tensor, dim: int) -> Tensor:
    """The largest magnitude along `dim` over 448, in float32; 1 where that is 0 or there is nothing."""
    if not x.shape[dim]:
        return torch.ones_like(x.sum(dim), dtype=torch.float32)
    largest = torch.linalg.vector_norm(x, float("inf"), dim=dim).float()
    return torch.where(largest == 0, 1.0, (largest / LARGEST).clamp_min(LEAST))


def _plain(x: Tensor, scale: Tensor) -> Tensor:
    codes = torch.empty(x.shape, dtype=DTYPE, device=x.device)
    return torch.mul(x, 1 / scale, out=codes)


def _kernels(x: Tensor) -> ModuleType | None:
    """The kernels that quantize x, on GPUs that have Triton."""
    if x.is_cuda and x.dtype is not torch.float64:
        try:
            from hayless.kernels import fp8_kernels
        except ImportError:
            return None
        return fp8_kernels
    return None


def product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (tokens, in) · Wᵀ + bias → (tokens, out) in x's dtype; `weight` e4m3 (out, in), `weight_scale` (out,)."""
    codes, scale = rows_quantized(x)
    if has_kernel(x, weight):
        y = torch._scaled_mm(
            codes,
            weight.T,
            scale_a=scale[:, None],
            scale_b=weight_scale[None],
            bias=None if bias is None else bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
        )
        return y.to(x.dtype)
    return multiplied(codes, scale, weight, weight_scale, bias, x.dtype)


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's kernel multiplies these: 16 bits, whose results are rounded to bf16, on a GPU that has e4m3."""
    if not (x.is_cuda and x.numel() and x.dtype in (torch.bfloat16, torch.float16)) or torch.version.hip is not None:
        return False
    even = all(width % EVEN == 0 for width in weight.shape)
    return even and torch.cuda.get_device_capability(x.device) >= CAPABILITY


def multiplied(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same in plain PyTorch: codes (tokens, in) and W as numbers of `dtype`, then scales and bias, in `dtype`."""
    y = (codes.to(dtype) * _SHRINK) @ (weight.to(dtype).mul_(_SHRINK)).T
    wide = torch.promote_types(dtype, torch.float32)
    y = y.to(wide) * (scale / _SHRINK)[:, None] * (weight_scale / _SHRINK)
    return (y if bias is None else y + bias.to(wide)).to(dtype)
