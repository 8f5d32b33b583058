"""A linear layer whose forward product and whose input's gradient are products of 8-bit floats.

The weight stays as it is. Each product quantizes both factors anew, with a scale for each row along which it sums
(`hayless.kernels.fp8`): x and W for y = x·Wᵀ, and for dx = g·W the gradient g by tokens and W by columns. The weight's
own gradient gᵀ·x, which is summed over many updates, is computed in x's dtype, as torchao's recipe
`rowwise_with_gw_hp` does. Shapes: n tokens, i in, o out.

Both products are operators with gradients of their own, which torch.compile takes whole: of a `torch.autograd.Function`
around them PyTorch 2.11 compiled no gradient on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.kernels.fp8 import columns_quantized, product, rows_quantized

PRODUCT = "hayless::fp8_linear"
"""The forward product's name among PyTorch's operators."""


def fp8_linear(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """x (…, i) · Wᵀ + b in x's dtype, or in autocast's where that is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    y_no: Tensor = _linear(x.reshape(-1, x.shape[-1]), weight_oi)
    y = y_no.view(*x.shape[:-1], len(weight_oi))
    return y if bias_o is None else y + bias_o.to(y.dtype)


@torch.library.custom_op(PRODUCT, mutates_args=())
def _linear(x_ni: Tensor, weight_oi: Tensor) -> Tensor:
    return product(x_ni, *rows_quantized(weight_oi), None)


@torch.library.custom_op("hayless::fp8_linear_backward", mutates_args=())
def _linear_backward(gradient_no: Tensor, weight_oi: Tensor) -> Tensor:
    return product(gradient_no, *columns_quantized(weight_oi), None)


@_linear.register_fake
def _(x_ni: Tensor, weight_oi: Tensor) -> Tensor:
    return x_ni.new_empty(len(x_ni), len(weight_oi))


@_linear_backward.register_fake
def _(gradient_no: Tensor, weight_oi: Tensor) -> Tensor:
    return gradient_no.new_empty(len(gradient_no), weight_oi.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x_ni, weight_oi = inputs
    ctx.save_for_backward(x_ni if ctx.needs_input_grad[1] else None, weight_oi)


def _backward(ctx: Any, gradient_no: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x_ni, weight_oi = ctx.saved_tensors
    gradient_no = gradient_no.contiguous()
    dx = _linear_backward(gradient_no, weight_oi) if ctx.needs_input_grad[0] else None
    dw = None if x_ni is None else (gradient_no.t() @ x_ni).to(weight_oi.dtype)
    return dx, dw


_linear.register_autograd(_backward, setup_context=_keep)


def fp8_linear_reference(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """The forward pass with codes multiplied as numbers, in float32; for tests."""
    (x_codes, x_scale), (w_codes, w_scale) = rows_quantized(x), rows_quantized(weight_oi)
    y = F.linear(x_codes.float() * x_scale[..., None], w_codes.float() * w_scale[:, None])
    return y if bias_o is None else y + bias_o.float()
