"""The branch: two thin matrices inside the module they belong to, added to its output by a forward hook.

The module itself is untouched, so a branch works beside any linear module, packed ones included, and the paths of the
base's tensors stay what they were. Names within the module (`lora_A.weight`) are those of PEFT's files.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import skip_init
from torch.utils.hooks import RemovableHandle

from hayless.methods.adapters.lora.config import LoraConfig


class Branch:
    """A forward hook: output + scaling · B(A(dropout(x))), computed in the dtype of the products around it.

    The matrices are trained in float32 and rounded for each pass, as autocast rounds weights: in 16 bits x is never
    copied to float32, and tensor cores are used.
    """

    def __init__(self, scaling: float, dropout: float) -> None:
        self.scaling = scaling
        self.dropout = dropout

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The module's output with the branch added, in the output's dtype."""
        x = F.dropout(inputs[0], self.dropout, training=module.training)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        a, b = module.lora_A.weight.to(dtype), module.lora_B.weight.to(dtype)
        added: Tensor = AddLowRank.apply(output, x, a, b, self.scaling)
        return added


class AddLowRank(torch.autograd.Function):
    """output + s·B(Ax): x (…, in), A (r, in), B (out, r), output (…, out); of the pass only x, A and B are kept."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.scaling = scaling
        inner = F.linear(x.to(a.dtype), a)
        if output.is_cuda and output.dtype == b.dtype:
            rows = torch.addmm(output.reshape(-1, output.shape[-1]), inner.reshape(-1, len(a)), b.T, alpha=scaling)
            return rows.view(output.shape)
        return (output + F.linear(inner, b).mul_(scaling)).to(output.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).to(b.dtype)
        inner = (rows @ b) * ctx.scaling
        for_x = for_a = for_b = None
        if ctx.needs_input_grad[1]:
            for_x = (inner @ a).view(x.shape).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1]).to(a.dtype)
        if ctx.needs_input_grad[2]:
            for_a = inner.T @ flat
        if ctx.needs_input_grad[3]:
            for_b = rows.T @ (flat @ a.T * ctx.scaling)
        return gradient if ctx.needs_input_grad[0] else None, for_x, for_a, for_b, None


def attach(module: nn.Module, in_features: int, out_features: int, config: LoraConfig) -> None:
    """Give a linear module a branch whose A and B are zero; float32, on the module's device."""
    device = next(tensor.device for tensor in (*module.parameters(), *module.buffers()))
    shapes = {"lora_A": (in_features, config.rank), "lora_B": (config.rank, out_features)}
    for name, shape in shapes.items():
        thin = skip_init(nn.Linear, *shape, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(thin.weight)
        module.add_module(name, thin)
    handle = module.register_forward_hook(Branch(config.scaling, config.dropout))
    module.lora_handle = handle  # type: ignore[assignment]


def draw(module: Any, generator: torch.Generator) -> None:
    """A from Kaiming's uniform distribution (as nn.Linear is initialised), B zero: the branch begins with no effect."""
    start = torch.empty(module.lora_A.weight.shape)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    module.lora_A.weight.data.copy_(start)


def update(module: Any, scaling: float) -> Tensor:
    """scaling · BA (out, in), in float32 or better."""
    b, a = module.lora_B.weight.detach(), module.lora_A.weight.detach()
    return scaling * (b.float() @ a.float())


def detach(module: Any) -> None:
    """Take the branch off."""
    handle: RemovableHandle = module.lora_handle
    handle.remove()
    del module.lora_A, module.lora_B, module.lora_handle
