"""A linear layer whose forward product and whose input's gradient are products of 8-bit floats.

The weight stays as it is. Each product quantizes both factors anew, with a scale for each row along which it sums
(`hayless.kernels.fp8`): x and W for y = x·Wᵀ, and for dx = g·W the gradient g by tokens and W by columns. The weight's
own gradient gᵀ·x, which is summed over many updates, is computed in x's dtype, as torchao's recipe
`rowwise_with_gw_hp` does. Shapes: n tokens, i in, o out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.kernels.fp8 import product, rows_quantized


def fp8_linear(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """x (…, i) · Wᵀ + b in x's dtype, or in autocast's where that is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    y_no: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight_oi)
    y = y_no.view(*x.shape[:-1], len(weight_oi))
    return y if bias_o is None else y + bias_o.to(y.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ni: Tensor, weight_oi: Tensor) -> Tensor:
        ctx.save_for_backward(x_ni if ctx.needs_input_grad[1] else None, weight_oi)
        return product(x_ni, *rows_quantized(weight_oi), None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_no: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ni, weight_oi = ctx.saved_tensors
        gradient_no = gradient_no.contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = product(gradient_no, *rows_quantized(weight_oi.t().contiguous()), None)
        if x_ni is not None:
            dw = (gradient_no.t() @ x_ni).to(weight_oi.dtype)
        return dx, dw


def fp8_linear_reference(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """The forward pass with codes multiplied as numbers, in float32; for tests."""
    (x_codes, x_scale), (w_codes, w_scale) = rows_quantized(x), rows_quantized(weight_oi)
    y = F.linear(x_codes.float() * x_scale[..., None], w_codes.float() * w_scale[:, None])
    return y if bias_o is None else y + bias_o.float()
