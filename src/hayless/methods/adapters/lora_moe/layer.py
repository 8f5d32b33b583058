"""The mixture beside a linear module, and the thin matrices beside the experts of a stack."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hayless.core.beside import MIXTURE, PROTOTYPES, thin_names
from hayless.methods.adapters.lora_moe.config import LoraMoeConfig, is_stack, tensors_of
from hayless.methods.common.sites import Target
from hayless.methods.common.thin import thin_zeros, working_dtype
from hayless.model.routed import RoutedExperts, grouped, route_back, route_through

_HANDLE = "lora_moe_handle"
_SCALING = "lora_moe_scaling"


class Mixture(nn.Module):
    """scaling · B(g(x) ⊙ Ax), in float32, computed in the dtype of the products around it; the gate's softmax is
    taken in float32.

    All LoRAs are computed for every token, as one pair of products of their ranks' sum: at a few small ranks that
    takes less time than sorting tokens does.
    """

    def __init__(self, target: Target, config: LoraMoeConfig, device: torch.device) -> None:
        super().__init__()
        gate, self.lora_A, self.lora_B = (
            thin_zeros(shape[1], shape[0], device) for shape in tensors_of(target, config).values()
        )
        self.add_module(config.gate, gate.requires_grad_(config.router == "gate"))
        self._gate = config.gate
        self.temperature = config.temperature
        self.top_k = config.top_k
        self.rank = config.rank
        self.scaling = config.scaling

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → (…, out)."""
        dtype = working_dtype(x)
        modules = (getattr(self, self._gate), self.lora_A, self.lora_B)
        gate, a, b = (module.weight.to(dtype) for module in modules)
        shares = self.shares(F.linear(x, gate).float()).to(dtype)
        inner = F.linear(x, a).unflatten(-1, (-1, self.rank)) * shares[..., None]
        return F.linear(inner.flatten(-2), b) * self.scaling

    def shares(self, scores: Tensor) -> Tensor:
        """Shares (…, experts) that sum to one; zero for those that are not among the largest."""
        # A singular vector has no sign.
        scores = scores.abs() if self._gate == PROTOTYPES else scores
        scores = scores if self.temperature == 1 else scores / self.temperature
        if self.top_k is not None:
            chosen = scores.topk(self.top_k, -1).indices
            left_out = torch.ones_like(scores, dtype=torch.bool).scatter(-1, chosen, False)
            scores = scores.masked_fill(left_out, -torch.inf)
        return scores.softmax(-1)


def attach(module: Any, target: Target, config: LoraMoeConfig) -> None:
    """Give a linear module or a stack of experts what is trained beside it, all zero, on its device."""
    device = next(tensor.device for tensor in (*module.parameters(), *module.buffers()))
    if not is_stack(target):
        module.add_module(MIXTURE, Mixture(target, config, device))
        setattr(module, _HANDLE, module.register_forward_hook(_add))
        return
    for name, shape in tensors_of(target, config).items():
        module.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))
    setattr(module, _SCALING, config.scaling)
    if not isinstance(module, RoutedExperts):
        route_through(module, _product)


def draw(module: Any, target: Target, generator: torch.Generator) -> None:
    """A and gates from Kaiming's uniform distribution (as nn.Linear is initialised), B zero: no effect at first.

    Gates are not zero, since the largest of equal scores would always be the same.
    """
    if is_stack(target):
        thin = [getattr(module, thin_names(target.row.parameter)[0])]
    else:
        own = getattr(module, MIXTURE)
        thin = [own.gate.weight, own.lora_A.weight]
    for tensor in thin:
        bound = 1 / math.sqrt(tensor.shape[-1])
        tensor.data.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


def update(module: Any, target: Target, scaling: float) -> Tensor:
    """scaling · B_e A_e (experts, out, in) of a stack, in float32."""
    a, b = (getattr(module, name).detach().float() for name in thin_names(target.row.parameter))
    return scaling * (b @ a)


def detach(module: Any, target: Target) -> None:
    """Take everything off again."""
    if not is_stack(target):
        getattr(module, _HANDLE).remove()
        delattr(module, _HANDLE)
        delattr(module, MIXTURE)
        return
    for name in thin_names(target.row.parameter):
        delattr(module, name)
    if not any(name.startswith("lora_") for name, _ in module.named_parameters(recurse=False)):
        delattr(module, _SCALING)
        route_back(module)


def _add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook: the module's output and the mixture's, in the output's dtype."""
    return output + getattr(module, MIXTURE)(inputs[0]).to(output.dtype)


def _product(stack: Any, parameter: str, x: Tensor, ends: Tensor) -> Tensor:
    """Each expert's W x, and scaling · BA x where it has thin matrices."""
    out = grouped(x, getattr(stack, parameter), ends)
    names = thin_names(parameter)
    if not hasattr(stack, names[0]):
        return out
    a, b = (getattr(stack, name).to(out.dtype) for name in names)
    return out + grouped(grouped(x, a, ends), b, ends) * getattr(stack, _SCALING)
