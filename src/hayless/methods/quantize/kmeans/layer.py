"""Modules whose weights are palettes: packed indices (a buffer) and codebooks (frozen), looked up when they run.

A module keeps its place, its bias and everything else; only its class and its weight change. Its parameter becomes a
property that looks the whole matrix up, so any code that reads it still works. Linear, Conv1D and Embedding have a
forward of their own: a matrix is looked up again in the backward pass instead of being kept between, and an embedding
looks up only the rows it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from hayless.core.ledger import Layout
from hayless.methods.quantize.kmeans.packing import unpack, unpack_at
from hayless.methods.quantize.kmeans.predict import output_channels, stored_names


@dataclass(frozen=True, slots=True)
class Palette:
    """How a tensor of `shape` is packed; `group_size` output channels share a codebook."""

    shape: tuple[int, ...]
    layout: Layout
    bits: int
    group_size: int

    def group(self, device: torch.device) -> Tensor:
        """The number of each weight's codebook, shaped so that it broadcasts to the tensor's shape; int32."""
        channels = output_channels(self.shape, self.layout)
        channel = torch.arange(channels, dtype=torch.int32, device=device) // self.group_size
        if self.layout is Layout.CONV1D:
            return channel[None, :]
        if self.layout is Layout.EXPERTS:
            first = torch.arange(self.shape[0], dtype=torch.int32, device=device) * -(-channels // self.group_size)
            return first[:, None, None] + channel[:, None]
        return channel[:, None]

    def look_up(self, codes: Tensor, codebook: Tensor) -> Tensor:
        """The tensor: stream and codebooks (groups, 2^bits) → `shape`, in the codebooks' dtype."""
        count = torch.Size(self.shape).numel()
        index = unpack(codes, self.bits, count).view(self.shape).int()
        if len(codebook) > 1:
            index += self.group(codes.device) << self.bits
        return codebook.view(-1).index_select(0, index.view(-1)).view(self.shape)

    def look_up_rows(self, rows: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
        """Rows (…) of a table (entries, width) → (…, width), without looking up the others."""
        width = self.shape[1]
        columns = torch.arange(width, device=rows.device)
        index = unpack_at(codes, self.bits, rows[..., None].long() * width + columns)
        index += (rows[..., None] // self.group_size).int() << self.bits
        return codebook.view(-1)[index]


class _Multiply(torch.autograd.Function):
    """x·Wᵀ + b for a palette W that receives no gradient; W is looked up in both passes and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, codes: Tensor, codebook: Tensor, palette: Palette) -> Tensor:
        ctx.save_for_backward(codes, codebook)
        ctx.palette, ctx.dtype = palette, x.dtype
        weight = palette.look_up(codes, codebook)
        if palette.layout is Layout.CONV1D:
            assert bias is not None
            # The same call as transformers' Conv1D makes, so that both have the same rounding.
            return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        for_x = for_bias = None
        if ctx.needs_input_grad[0]:
            # Under autocast the forward product was made in the gradient's dtype.
            weight = ctx.palette.look_up(*ctx.saved_tensors).to(gradient.dtype)
            for_x = gradient.matmul(weight.T if ctx.palette.layout is Layout.CONV1D else weight).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(dim=0)
        return for_x, for_bias, None, None, None


class PaletteLinear(nn.Linear):
    """nn.Linear over a palette."""

    palettes: dict[str, Palette]
    weight_codes: Tensor
    weight_codebook: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return _Multiply.apply(input, self.bias, self.weight_codes, self.weight_codebook, self.palettes["weight"])


class PaletteConv1D(Conv1D):
    """transformers' Conv1D over a palette."""

    palettes: dict[str, Palette]
    weight_codes: Tensor
    weight_codebook: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return _Multiply.apply(x, self.bias, self.weight_codes, self.weight_codebook, self.palettes["weight"])


class PaletteEmbedding(nn.Embedding):
    """nn.Embedding over a palette; subclasses that scale or shift around it keep their own forward."""

    palettes: dict[str, Palette]
    weight_codes: Tensor
    weight_codebook: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Token ids (…) → (…, width)."""
        return self.palettes["weight"].look_up_rows(input, self.weight_codes, self.weight_codebook)


_OWN_FORWARD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PaletteLinear,
    Conv1D: PaletteConv1D,
    nn.Embedding: PaletteEmbedding,
}


def install(module: Any, parameter: str, palette: Palette, codes: Tensor, codebook: Tensor) -> None:
    """Put a palette in the place of `module`'s parameter, in place."""
    palettes = {**getattr(module, "palettes", {}), parameter: palette}
    original: Any = type(module) if len(palettes) == 1 else type(module).original
    delattr(module, parameter)
    codes_name, codebook_name = stored_names(parameter)
    module.register_buffer(codes_name, codes)
    # A parameter, so that it is cast together with the frozen weights of other modules, and sharded with them.
    module.register_parameter(codebook_name, nn.Parameter(codebook, requires_grad=False))
    module.palettes = palettes
    module.__class__ = _palette_class(original, tuple(palettes))


@cache
def _palette_class(original: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of a module's class with a property for each packed parameter."""
    bases: tuple[type, ...]
    if original in _OWN_FORWARD:
        bases = (_OWN_FORWARD[original],)
    elif issubclass(original, nn.Embedding):
        bases = (original, PaletteEmbedding)
    else:
        bases = (_Recomputed, original)
    members: dict[str, Any] = {parameter: _looked_up(parameter) for parameter in parameters}
    return type(f"Palette{original.__name__}", bases, {**members, "original": original})


def _looked_up(parameter: str) -> property:
    codes, codebook = stored_names(parameter)

    def look_up(module: Any) -> Tensor:
        found: Tensor = module.palettes[parameter].look_up(getattr(module, codes), getattr(module, codebook))
        return found

    return property(look_up)


class _Recomputed(nn.Module):
    """Runs a module (a stack of experts, a router) again in the backward pass: what it looked up is not kept."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        run = super().forward
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return checkpoint(run, *inputs, use_reentrant=False, **options)
        return run(*inputs, **options)
