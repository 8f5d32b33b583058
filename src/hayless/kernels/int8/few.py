"""x·Wᵀ + b for few tokens and a W of int8: every column is multiplied in 16 bits, as outlying ones are.

Few tokens take as long as W is read, however they are multiplied, so nothing is gained by rounding them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.kernels.int8.plain import as_integers
from hayless.kernels.packed.tensor_cores import multiply
from hayless.kernels.packed.tensor_cores import unsupported as not_in_tensor_cores


def unsupported(x: Tensor, weight: Tensor, weight_scale: Tensor) -> str:
    """Why `product` cannot multiply such an x and W; empty where it can."""
    return not_in_tensor_cores(x, as_integers(weight, weight_scale))


def product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """x (tokens, in), fp16 or bf16 · Wᵀ + bias → (tokens, out) in x's dtype: as with a `threshold` that every column
    reaches. Operands as in `plain.product`, contiguous. NotSupported where `unsupported` gives a reason.
    """
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    return multiply(x, as_integers(weight, weight_scale), None if bias is None else bias.to(x.dtype), out)
