"""The product of LLM.int8() by the kernel where it runs, by plain PyTorch elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hayless.kernels.int8 import plain
from hayless.kernels.int8.capacity import FEW

Product = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""x (tokens, in), W int8 (out, in), its scale (out,), bias (out,) or None, threshold → (tokens, out)."""

_CAPABILITY = (8, 0)
_WIDEST = 65536
"""Inputs up to this width fit into a program of the kernel that quantizes a token."""


def product_for(x: Tensor, weight: Tensor, weight_scale: Tensor, threshold: float) -> Product:
    """The way to multiply such an x: the kernel on NVIDIA GPUs of compute capability 8.0 and later with Triton; there
    up to 16 tokens in 16 bits, unless a threshold of 0 has no column in them."""
    if not _serves(x):
        return plain.product
    from hayless.kernels.int8 import few, product

    return few.product if few_serve(x, weight, weight_scale, threshold) else product.product


def few_serve(x: Tensor, weight: Tensor, weight_scale: Tensor, threshold: float) -> bool:
    """Whether so few tokens (tokens, in) are multiplied whole in 16 bits (`few.product`)."""
    if not (threshold and x.shape[0] <= FEW and _serves(x)):
        return False
    from hayless.kernels.int8 import few

    return not few.unsupported(x, weight, weight_scale)


def _serves(x: Tensor) -> bool:
    possible = x.is_cuda and x.numel() and x.dtype is not torch.float64 and x.shape[-1] <= _WIDEST
    return bool(possible and _has_kernels() and torch.cuda.get_device_capability(x.device) >= _CAPABILITY)


@cache
def _has_kernels() -> bool:
    return torch.version.hip is None and importlib.util.find_spec("triton") is not None
