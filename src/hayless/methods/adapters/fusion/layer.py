"""The attention over modules, and how it is put beside a matrix or behind a sublayer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hayless.core.beside import TRAINED
from hayless.methods.adapters.fusion.config import FusionConfig
from hayless.methods.adapters.fusion.predict import Site, tensors_of
from hayless.methods.common.behind import add_behind
from hayless.methods.common.thin import working_dtype

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
_HANDLES = "fusion_handles"
_STD = 0.02
"""Deviation of queries and keys at first, as in the authors' code."""
_NOISE = 1e-6
"""Deviation of values off the diagonal at first (section 3.2.1)."""


class Fused(nn.Module):
    """V Σ s_n z_n, s = softmax((Qx)·(K z_n)) over modules z_n = B_n f(A_n x + a_n) + b_n, in float32, computed in the
    dtype of the products around it.

    No z_n is ever written down: (Qx)·(K z_n) = u·z_n with u = KᵀQx is a sum over the module's share of
    Bᵀu ⊙ f(Ax + a), with the matrices of all modules in one A and one B. Of V its difference from the identity is kept.
    """

    def __init__(self, site: Site, config: FusionConfig, device: torch.device) -> None:
        super().__init__()
        for name, shape in tensors_of(site, config).items():
            part, _, parameter = name.partition(".")
            if not hasattr(self, part):
                self.add_module(part, nn.Module())
            tensor = nn.Parameter(torch.zeros(shape, device=device), requires_grad=part in TRAINED)
            self.get_submodule(part).register_parameter(parameter, tensor)
        self.activation: Callable[[Tensor], Tensor] | None = _ACTIVATIONS.get(site.member.rpartition("_")[2])
        self.rank, self.valued = site.rank, config.value

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → (…, out)."""
        own: Any = self
        dtype, bottlenecks = working_dtype(x), self.activation is not None
        query, key, thin, wide = (part.weight.to(dtype) for part in (own.query, own.key, own.thin, own.wide))
        inner = F.linear(x, thin.flatten(0, 1), own.thin.bias.to(dtype) if bottlenecks else None)
        inner = inner if self.activation is None else self.activation(inner)
        asked = F.linear(F.linear(x, query), key.T)
        scores = (F.linear(asked, wide.T) * inner).float().unflatten(-1, (-1, self.rank)).sum(-1)
        if bottlenecks:
            shift = own.shift.weight.to(dtype)
            scores = scores + F.linear(asked, shift.T)
        shares = scores.softmax(-1).to(inner.dtype)
        mixed = F.linear((inner.unflatten(-1, (-1, self.rank)) * shares[..., None]).flatten(-2), wide)
        if bottlenecks:
            mixed = mixed + F.linear(shares, shift)
        return mixed + F.linear(mixed, own.value.weight.to(dtype)) if self.valued else mixed


def attach(last: Any, first: Any, site: Site, config: FusionConfig) -> None:
    """Put a fusion of zeros beside a matrix, or behind the sublayer that ends in it."""
    device = next(tensor.device for tensor in (*last.parameters(), *last.buffers()))
    last.add_module(site.name, Fused(site, config, device))
    if site.member:
        handles = add_behind(last, first, site.name, parallel=site.parallel)
    else:
        handles = [last.register_forward_hook(_Beside(site.name))]
    setattr(last, _HANDLES, handles)


def draw(module: Any, site: Site, generator: torch.Generator) -> None:
    """Queries and keys small and random, so that modules begin with nearly equal shares; values nearly the identity."""
    own = getattr(module, site.name)
    for linear in (own.query, own.key):
        linear.weight.data.copy_(torch.empty(linear.weight.shape).normal_(std=_STD, generator=generator))
    if hasattr(own, "value"):
        noise = torch.empty(own.value.weight.shape).normal_(std=_NOISE, generator=generator)
        own.value.weight.data.copy_(noise.fill_diagonal_(0))


def detach(module: Any, site: Site) -> None:
    """Take the fusion off."""
    for handle in getattr(module, _HANDLES):
        handle.remove()
    delattr(module, _HANDLES)
    delattr(module, site.name)


class _Beside:
    """A forward hook: the module's output and what the fusion makes of its input, in the output's dtype."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + getattr(module, self.name)(inputs[0]).to(output.dtype)
