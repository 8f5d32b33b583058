"""The product of LLM.int8() by the kernel where it runs, by plain PyTorch elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hayless.kernels.int8 import plain

Product = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""x (tokens, in), W int8 (out, in), its scale (out,), bias (out,) or None, threshold → (tokens, out)."""

_CAPABILITY = (8, 0)
_WIDEST = 65536
"""Inputs up to this width fit into a program of the kernel that quantizes a token."""


def product_for(x: Tensor) -> Product:
    """The way to multiply such an x: the kernel on NVIDIA GPUs of compute capability 8.0 and later with Triton."""
    if not (x.is_cuda and x.numel() and x.dtype is not torch.float64 and x.shape[-1] <= _WIDEST):
        return plain.product
    return _kernel() if torch.cuda.get_device_capability(x.device) >= _CAPABILITY else plain.product


@cache
def _kernel() -> Product:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return plain.product
    from hayless.kernels.int8.product import product

    return product
