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
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from hayless.core.beside import MAGNITUDE
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.adapters.lora.predict import START, Site
from hayless.methods.common.thin import thin_zeros, working_dtype
from hayless.model.packing import PackedLinear

_START_A, _START_B = f"{START}_A", f"{START}_B"


class Branch:
    """A forward hook: output + scaling · B(A(dropout(x))), computed in the dtype of the products around it.

    The matrices are trained in float32 and rounded for each pass, as autocast rounds weights: in 16 bits x is never
    copied to float32, and tensor cores are used. With DoRA the sum without the bias is scaled to the trained lengths.
    """

    def __init__(self, scaling: float, dropout: float) -> None:
        self.scaling = scaling
        self.dropout = dropout

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The module's output with the branch added, in the output's dtype."""
        x = F.dropout(inputs[0], self.dropout, training=module.training)
        dtype = working_dtype(x)
        a, b = (factor.to(dtype) for factor in factors(module))
        if MAGNITUDE not in module._parameters:
            base = module if x is inputs[0] and _is_frozen_product(module, output) else None
            return add_low_rank(output if base is None else output.detach(), x, a, b, self.scaling, base)
        # Under autocast a bias is of another dtype than what it was added to.
        bias = None if module.bias is None else module.bias.to(output.dtype)
        summed = add_low_rank(output if bias is None else output - bias, x, a, b, self.scaling)
        # The lengths that the weights have are taken for a constant (DoRA, section 4.3).
        share = getattr(module, MAGNITUDE) / lengths(module, self.scaling)
        summed = summed * share.to(summed.dtype)
        return summed if bias is None else summed + bias


def add_low_rank(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, base: Any = None) -> Tensor:
    """output + s·B(Ax): x (…, in), A (r, in), B (out, r), output (…, out).

    Compiled code is told no more than that: what it keeps, and where it adds, is decided with all that surrounds it.
    (PyTorch 2.11 also loses the gradient of `output` in a compiled `AddLowRank`.)
    """
    if torch.compiler.is_compiling():
        return (output + F.linear(F.linear(x.to(a.dtype), a), b) * scaling).to(output.dtype)
    found: Tensor = AddLowRank.apply(output, x, a, b, scaling, base)
    return found


class AddLowRank(torch.autograd.Function):
    """`add_low_rank`, of which only x, A and B are kept.

    The sum is made in the memory of `output`, which a linear module does not keep; in new memory where that is a view
    of another tensor's (with a bias), and where a mode looks on (checkpointing that keeps products has them from it,
    and takes them as they are then). Where `base` is given `output` is its frozen product with x, detached, and the
    gradient of x is made of both products in one memory.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, base: Any) -> Tensor:
        ctx.scaling, ctx.base = scaling, base
        inner = F.linear(x.to(a.dtype), a)
        ctx.save_for_backward(x, a, b)
        if output._is_view() or is_in_torch_dispatch_mode():
            output = output.clone()
        else:
            ctx.mark_dirty(output)
        if output.is_cuda and output.dtype == b.dtype and output.is_contiguous():
            output.view(-1, output.shape[-1]).addmm_(inner.view(-1, len(a)), b.T, alpha=scaling)
            return output
        return output.add_(F.linear(inner, b) * scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).to(b.dtype)
        inner = (rows @ b) * ctx.scaling
        for_x = for_a = for_b = None
        if ctx.needs_input_grad[1] and ctx.base is not None:
            for_x = _through(ctx.base, gradient).to(x.dtype)
            if for_x.dtype == a.dtype:
                for_x.view(-1, x.shape[-1]).addmm_(inner, a)
            else:
                for_x.view(-1, x.shape[-1]).add_(inner @ a)
        elif ctx.needs_input_grad[1]:
            for_x = (inner @ a).view(x.shape).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1]).to(a.dtype)
        if ctx.needs_input_grad[2]:
            for_a = inner.T @ flat
        if ctx.needs_input_grad[3]:
            for_b = rows.T @ (flat @ a.T * ctx.scaling)
        return gradient if ctx.needs_input_grad[0] else None, for_x, for_a, for_b, None, None


def _is_frozen_product(module: Any, output: Tensor) -> bool:
    """Whether a linear module's output is its frozen matrix times its input, plus a frozen bias, and nothing else, so
    that the gradient of its input is known; not in compiled code, which fuses sums itself, and where dtypes are
    autocast's."""
    plain = type(module) is nn.Linear or isinstance(module, PackedLinear)
    changed = len(module._forward_hooks) > 1 or module._forward_pre_hooks or "forward" in vars(module)
    if not plain or changed or not output.requires_grad or torch.compiler.is_compiling():
        return False
    trained = any(item is not None and item.requires_grad for item in module._parameters.values())
    return not trained and not torch.is_autocast_enabled(output.device.type)


def _through(module: Any, gradient: Tensor) -> Tensor:
    """gradient (…, out) · W, contiguous."""
    if isinstance(module, PackedLinear):
        return module.multiplied_back(gradient).contiguous()
    weight: Tensor = module.weight
    return gradient.matmul(weight).contiguous()


def attach(
    module: nn.Module, in_features: int, out_features: int, config: LoraConfig, site: Site | None = None
) -> None:
    """Give a linear module a branch whose A and B are zero; float32, on the module's device.

    `site` has its rank and scaling where they are not those of `config`.
    """
    device = next(tensor.device for tensor in (*module.parameters(), *module.buffers()))
    rank, scaling = (site.rank, site.scaling) if site else (config.rank, config.scaling)
    shapes = {"lora_A": (in_features, rank), "lora_B": (rank, out_features)}
    frozen = {_START_A: shapes["lora_A"], _START_B: shapes["lora_B"]} if config.initial == "pissa" else {}
    for name, shape in (shapes | frozen).items():
        thin = thin_zeros(*shape, device)
        module.add_module(name, thin.requires_grad_(name not in frozen))
    if config.dora:
        module.register_parameter(MAGNITUDE, nn.Parameter(torch.ones(out_features, device=device)))
    handle = module.register_forward_hook(Branch(scaling, config.dropout))
    module.lora_handle = handle  # type: ignore[assignment]


def draw(module: Any, generator: torch.Generator) -> None:
    """A from Kaiming's uniform distribution (as nn.Linear is initialised), B zero: the branch begins with no effect."""
    start = torch.empty(module.lora_A.weight.shape)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    module.lora_A.weight.data.copy_(start)


def draw_singular(module: Any, scaling: float) -> None:
    """A and B from the largest singular vectors of W (PiSSA, arXiv:2404.02948, equations 2 and 3), and the same frozen
    and with the other sign beside them, so that the branch begins with no effect and W stays as it is."""
    u, s, v = torch.linalg.svd(_weight(module).float(), full_matrices=False)
    rank = len(module.lora_A.weight)
    root = (s[:rank] / scaling).sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    for name, value in (("lora_A", a), ("lora_B", b), (_START_A, a), (_START_B, -b)):
        getattr(module, name).weight.data.copy_(value)


def start_lengths(module: Any, scaling: float) -> None:
    """DoRA begins with the lengths that the weights have."""
    getattr(module, MAGNITUDE).data.copy_(lengths(module, scaling))


def factors(module: Any) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r); with what they began with beside them, r is twice the trained rank."""
    a, b = module.lora_A.weight, module.lora_B.weight
    if not hasattr(module, _START_A):
        return a, b
    return torch.cat([a, getattr(module, _START_A).weight]), torch.cat([b, getattr(module, _START_B).weight], 1)


@torch.no_grad()
def lengths(module: Any, scaling: float) -> Tensor:
    """The norm of each row of W + scaling · BA, (out,), in float32.

    ‖w + u‖² = ‖w‖² + 2 w·u + ‖u‖², in which u = scaling · bA is never written down.
    """
    w = _weight(module).float()
    a, b = (factor.float() for factor in factors(module))
    cross, square = ((w @ a.T) * b).sum(1), ((b @ (a @ a.T)) * b).sum(1)
    return (w.square().sum(1) + 2 * scaling * cross + scaling**2 * square).clamp(min=0).sqrt()


def merged(module: Any, scaling: float) -> Tensor:
    """What an ordinary weight would be in the place of W and the branch, laid out as W is, in float32."""
    a, b = (factor.detach().float() for factor in factors(module))
    total = _weight(module).float() + scaling * (b @ a)
    if MAGNITUDE in module._parameters:
        total *= (getattr(module, MAGNITUDE).detach() / lengths(module, scaling))[:, None]
    return total.T if isinstance(module, Conv1D) else total


def detach(module: Any) -> None:
    """Take the branch off."""
    handle: RemovableHandle = module.lora_handle
    handle.remove()
    for name in ("lora_A", "lora_B", _START_A, _START_B, MAGNITUDE, "lora_handle"):
        if hasattr(module, name):
            delattr(module, name)


def _weight(module: Any) -> Tensor:
    """W (out, in)."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight
