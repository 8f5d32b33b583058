"""The cross-entropy of a linear head without (tokens × vocabulary) logits: a chunk of tokens after the other.

A chunk's logits become their own gradient, and that at once the gradients of hidden states and head, so that nothing
of a chunk outlives it and no product is computed twice (the idea of Liger Kernel's fused linear cross-entropy, Hsu et
al., 2024, arXiv:2410.10989). Gradients are made while the loss is computed, and scaled in the backward pass.
Shapes: n tokens, c of a chunk, h width, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The target of a token that counts nothing."""
CHUNK = 1024
"""Tokens whose logits exist at once."""


def linear_cross_entropy(
    hidden_nh: Tensor,
    weight_vh: Tensor,
    targets_n: Tensor,
    *,
    bias_v: Tensor | None = None,
    softcap: float | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of softcap · tanh((hidden · weightᵀ + bias) / softcap), summed over tokens or their mean, a
    scalar in float32 at least; and how many targets are the likeliest entry. Targets of −100 count nothing.

    Products are computed in autocast's dtype where that is on. The gradient of the head is summed over chunks in the
    head's dtype, as gradients of micro-batches are.
    """
    grads = torch.is_grad_enabled()
    wanted = tuple(grads and tensor is not None and tensor.requires_grad for tensor in (hidden_nh, weight_vh, bias_v))
    total, right = _LinearCrossEntropy.apply(hidden_nh, weight_vh, bias_v, targets_n, softcap, chunk, wanted)
    return (total / (targets_n != IGNORED).sum() if reduction == "mean" else total), right


def cross_entropy_reference(
    logits_cv: Tensor, targets_c: Tensor, *, softcap: float | None = None, gradient: bool
) -> tuple[Tensor, Tensor]:
    """What the kernel `hayless.kernels.cross_entropy` computes, in plain PyTorch and in float64 too."""
    counts_c = targets_c != IGNORED
    safe_c1 = targets_c.where(counts_c, 0)[:, None]
    wide_cv = logits_cv.to(torch.promote_types(logits_cv.dtype, torch.float32))
    if softcap is not None:
        wide_cv = softcap * torch.tanh(wide_cv / softcap)
    right_c = counts_c & (wide_cv.argmax(-1) == targets_c)
    log_sums_c = wide_cv.logsumexp(-1)
    losses_c = (log_sums_c - wide_cv.gather(1, safe_c1)[:, 0]).where(counts_c, 0)
    if gradient:
        slope_cv = torch.exp(wide_cv - log_sums_c[:, None])
        slope_cv.scatter_add_(1, safe_c1, torch.full_like(safe_c1, -1, dtype=slope_cv.dtype))
        if softcap is not None:
            slope_cv *= 1 - (wide_cv / softcap).square()
        logits_cv.copy_(slope_cv.masked_fill_(~counts_c[:, None], 0))
    return losses_c, right_c


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: Tensor,
        weight_vh: Tensor,
        bias_v: Tensor | None,
        targets_n: Tensor,
        softcap: float | None,
        chunk: int,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor]:
        kind = hidden_nh.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        total = hidden_nh.new_zeros((), dtype=torch.promote_types(hidden_nh.dtype, torch.float32))
        right = targets_n.new_zeros(())
        made = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed and tensor is not None else None
            for tensor, needed in zip((hidden_nh, weight_vh, bias_v), wanted, strict=True)
        ]
        d_hidden, d_weight, d_bias = made
        if d_bias is not None:
            d_bias.zero_()
        if d_weight is not None and not len(hidden_nh):
            d_weight.zero_()
        rows = _rows(hidden_nh)
        with torch.autocast(kind, enabled=False):
            matrix, offset = _cast(weight_vh, narrow), None if bias_v is None else _cast(bias_v, narrow)
            for start in range(0, len(hidden_nh), chunk):
                part = slice(start, start + chunk)
                x = _cast(hidden_nh[part], narrow)
                slope = F.linear(x, matrix, offset)
                losses, found = rows(slope, targets_n[part], softcap=softcap, gradient=any(wanted))
                total += losses.sum()
                right += found.sum()
                if d_hidden is not None and d_hidden.dtype == slope.dtype:
                    torch.mm(slope, matrix, out=d_hidden[part])
                elif d_hidden is not None:
                    d_hidden[part] = slope @ matrix
                if d_weight is not None:
                    _add_product(d_weight, slope, x, first=start == 0)
                if d_bias is not None:
                    d_bias += slope.sum(0)
                # Before the next chunk's are there.
                del slope
        ctx.save_for_backward(*made)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        # In their own memory, unless they are asked for again: the head's gradient is as large as the head.
        made = [
            None if tensor is None else _scaled(tensor.clone() if again else tensor, gradient)
            for tensor in ctx.saved_tensors
        ]
        return (*made, None, None, None, None)


def _rows(hidden: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The kernel on GPUs that have Triton, else plain PyTorch."""
    kernels = _kernels(hidden)
    return kernels.cross_entropy if kernels else cross_entropy_reference


def _scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """The tensor, multiplied in place by a number on its device. On GPUs PyTorch's own product rounds the number to 16
    bits where the tensor has as many, and takes four times as long."""
    kernels = _kernels(tensor)
    if kernels:
        kernels.scale(tensor, factor)
        return tensor
    return tensor.mul_(factor)


def _kernels(tensor: Tensor) -> ModuleType | None:
    """What serves a tensor on GPUs that have Triton."""
    if not tensor.is_cuda or tensor.dtype is torch.float64:
        return None
    try:
        from hayless.kernels import cross_entropy
    except ImportError:
        return None
    return cross_entropy


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _add_product(total_vh: Tensor, slope_cv: Tensor, x_ch: Tensor, *, first: bool) -> None:
    """total += slopeᵀ · x, summed in the dtype of `total`, which holds nothing yet if `first`."""
    beta = 0 if first else 1
    if total_vh.dtype == x_ch.dtype:
        total_vh.addmm_(slope_cv.t(), x_ch, beta=beta)
    elif x_ch.is_cuda:
        torch.addmm(total_vh, slope_cv.t(), x_ch, beta=beta, out_dtype=total_vh.dtype, out=total_vh)
    elif first:
        total_vh.copy_(slope_cv.t() @ x_ch)
    else:
        total_vh += slope_cv.t() @ x_ch
