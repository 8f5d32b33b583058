"""x Wᵀ + bias for packed weights, and which kernel does it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from hayless.core.errors import NotSupported, bad_value
from hayless.core.packing import FEW
from hayless.kernels.packed.formats import Packed, linear_reference

Kernel = Literal["tensor_cores", "gemv", "gemm", "dequantize", "reference"]


def kernel_for(x: Tensor, weight: Packed) -> Kernel:
    """What `linear` does with x (…, in) unless it is told: plain PyTorch on CPUs and without Triton."""
    if not x.is_cuda or find_spec("triton") is None:
        return "reference"
    from hayless.kernels.packed.source import in_units
    from hayless.kernels.packed.tensor_cores import unsupported

    tokens = x.numel() // x.shape[-1]
    if tokens > FEW or not in_units(weight):
        return "dequantize"
    if not unsupported(x, weight):
        return "tensor_cores"
    return "gemv" if tokens == 1 else "gemm"


def linear(
    x: Tensor,
    weight: Packed,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    add: bool = False,
    overlap: bool = False,
    kernel: Kernel | None = None,
) -> Tensor:
    """x (…, in) Wᵀ + bias (out,) as (…, out) in x's dtype (fp32, fp16 or bf16), summed in float32.

    Written to `out` where that is given (contiguous, of x's dtype), with `add` on top of what is there. With `overlap`
    a kernel that can reads weights while the one before it, which must not write them, still runs. `kernel` forces one
    (`kernel_for`). May be captured in CUDA graphs once it has run: nothing waits for the device, and what
    else is needed (sums of parts, x laid out anew, a dequantized weight) comes from PyTorch's allocator. RequestError
    where shapes or dtypes do not match; NotSupported where gradients would be needed, which there are none of, and
    where the kernel that is forced cannot do it.
    """
    rows, width = weight.shape
    shape = (*x.shape[:-1], rows)
    if x.shape[-1] != width:
        raise bad_value("x", tuple(x.shape), allowed=f"(…, {width})")
    if bias is not None and (bias.shape != (rows,) or bias.dtype != x.dtype):
        raise bad_value("bias", f"{bias.dtype} {tuple(bias.shape)}", allowed=f"{x.dtype} ({rows},)")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise NotSupported(
            "Products with packed weights have no gradients.",
            hint="Under torch.no_grad, or with the weight dequantized.",
        )
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
    elif out.shape != shape or out.dtype != x.dtype or not out.is_contiguous():
        raise bad_value("out", f"{out.dtype} {tuple(out.shape)}", allowed=f"contiguous {x.dtype} {shape}")
    if not out.numel():
        return out
    flat = x.reshape(-1, width).contiguous()
    chosen = kernel or kernel_for(flat, weight)
    if add and chosen != "tensor_cores":
        return out.add_(linear(x, weight, bias, kernel=chosen))
    target = out.view(-1, rows)
    if chosen == "reference":
        target.copy_(linear_reference(flat, weight, bias))
    elif chosen == "tensor_cores":
        from hayless.kernels.packed.tensor_cores import multiply

        multiply(flat, weight, bias, target, add=add, overlap=overlap)
    elif chosen == "gemv":
        from hayless.kernels.packed.gemv import gemv

        gemv(flat, weight, bias, target)
    elif chosen == "gemm":
        from hayless.kernels.packed.gemm import gemm

        gemm(flat, weight, bias, target)
    else:
        from hayless.kernels.packed.dequantize import dequantize

        whole = dequantize(weight, x.dtype).T
        torch.mm(flat, whole, out=target) if bias is None else torch.addmm(bias, flat, whole, out=target)
    return out
