"""Stacks of experts whose products another makes: what is routed to each expert is sorted, and the products are asked
for by the name of the stack's parameter.

A stack keeps its place and its tensors; only its class changes, as that of a packed one does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hayless.core.errors import NotSupported
from hayless.model.packing import PackedModule

Product = Callable[[Any, str, Tensor, Tensor], Tensor]
"""(stack, parameter, x (S, in) sorted by expert, ends (E,) of each expert's rows) → (S, out)."""

_LAYOUT = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}


class RoutedExperts(nn.Module):
    """A stack of experts that asks `routed_product` for its two products, whatever implementation was chosen for it."""

    routed_product: Product
    original: type[nn.Module]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states (T, in), the experts of each token (T, k) and their weights (T, k) → (T, in)."""
        inputs = (hidden_states, top_k_index, top_k_weights)
        if isinstance(self, PackedModule) and torch.is_grad_enabled():
            # What was unpacked is not kept.
            found: Tensor = checkpoint(self._routed, *inputs, use_reentrant=False)
            return found
        return self._routed(*inputs)

    def _routed(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        stack: Any = self
        chosen = index.shape[-1]
        experts, order = torch.sort(index.reshape(-1), stable=True)
        ends = torch.searchsorted(experts, torch.arange(stack.num_experts, device=experts.device), right=True).int()
        x = hidden[order // chosen]
        inner = stack._apply_gate(type(self).routed_product(self, "gate_up_proj", x, ends))
        out = type(self).routed_product(self, "down_proj", inner, ends) * weights.reshape(-1)[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out[back].view(*index.shape, -1).sum(1).to(hidden.dtype)


def route_through(stack: Any, product: Product) -> None:
    """Let `product`, a function of a module, make the products of a stack of experts. NotSupported for stacks whose
    matrices are laid out in another way."""
    odd = [name for name, value in _LAYOUT.items() if getattr(stack, name, None) is not value]
    if odd or getattr(stack, "has_post_expert_norm", False):
        raise NotSupported(f"Experts of class {type(stack).__name__} are laid out in a way that is not known here.")
    original: Any = type(stack)
    stack.__class__ = _routed_class(original, product)


def route_back(stack: Any) -> None:
    """The inverse of `route_through`."""
    stack.__class__ = type(stack).original


def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x (S, in), sorted by expert, times each expert's matrix of `weight` (E, out, in) → (S, out), in weight's dtype.

    One grouped product on a GPU where widths are multiples of 16 bytes, else a product an expert.
    """
    x = x.to(weight.dtype)
    if x.is_cuda and all(width * x.itemsize % 16 == 0 for width in weight.shape[1:]):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    # Grouped products are not among those that autocast makes narrow.
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat([F.linear(part, matrix) for part, matrix in zip(x.split(counts), weight, strict=True)])


@cache
def _routed_class(original: type[nn.Module], product: Product) -> type[nn.Module]:
    members = {"routed_product": staticmethod(product), "original": original}
    return type(f"Routed{original.__name__}", (RoutedExperts, original), members)
