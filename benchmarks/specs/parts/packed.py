"""Products with few bits a weight, by hayless and others, made from a weight (out, in) in bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hayless.kernels.packed.formats import Nested, Packed, dequantize_reference
from hayless.kernels.packed.linear import Kernel, linear
from hayless.methods.quantize.nf4.blocks import nested
from hayless.methods.quantize.nf4.tables import values_of

GROUP, BLOCK = 128, 64
"""Columns that share a scale: of integers, of nf4."""


@dataclass(frozen=True)
class Product:
    """x → x Wᵀ, of x in `dtype`; in float32 the weight that it stands for."""

    multiply: Callable[[Tensor], Tensor]
    weight: Tensor
    dtype: torch.dtype = torch.bfloat16


Maker = Callable[[Tensor], Product]


def cublas(weight: Tensor) -> Product:
    """The weight as it is."""
    return Product(lambda x: F.linear(x, weight), weight.float())


def integers(bits: int, *, triton: bool = False) -> Maker:
    """hayless's integers: of 4 bits a scale for each `GROUP` columns, of 8 a scale a row."""

    def make(weight: Tensor) -> Product:
        from hayless.kernels.packed.quantize import quantize_integers

        packed = quantize_integers(weight, bits, weight.shape[1] if bits == 8 else GROUP)
        return _hayless(packed, triton)

    return make


def nf4(*, double: bool = False, triton: bool = False) -> Maker:
    """hayless's nf4, its scales in float32 or double quantized."""

    def make(weight: Tensor) -> Product:
        from hayless.kernels.packed.quantize import quantize_table

        packed = quantize_table(weight, values_of("nf4", weight.device), BLOCK)
        if double:
            second = nested(packed.absmax)
            then = Nested(second["absmax_table"], second["nested_absmax"], second["offset"])
            packed = replace(packed, absmax=second["absmax"], nested=then)
        return _hayless(packed, triton)

    return make


def _hayless(packed: Packed, triton: bool) -> Product:
    def multiply(x: Tensor) -> Tensor:
        one: Kernel = "gemv" if x.shape[0] == 1 else "gemm"
        # As the engine has them multiplied: the kernel before writes no weights.
        return linear(x, packed, kernel=one if triton else None, overlap=not triton)

    return Product(multiply, dequantize_reference(packed, torch.float32))


def bitsandbytes(weight: Tensor) -> Product:
    """bitsandbytes' nf4 with scales in float32, as its Linear4bit multiplies."""
    import bitsandbytes as bnb

    packed, state = bnb.functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    meant = bnb.functional.dequantize_4bit(packed, state).float()
    return Product(lambda x: bnb.matmul_4bit(x, packed.t(), state), meant)


def tinygemm(weight: Tensor) -> Product:
    """PyTorch's own product with integers of 4 bits: bf16, x (code − 8) · scale + zero."""
    grouped = weight.float().unflatten(1, (-1, GROUP))
    low, high = grouped.amin(2), grouped.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-6).to(weight.dtype)
    zero = (low + scale.float() * 8).to(weight.dtype)
    codes = ((grouped - low[..., None]) / scale.float()[..., None]).round().clamp(0, 15)
    meant = ((codes - 8) * scale.float()[..., None] + zero.float()[..., None]).flatten(1)
    flat = codes.flatten(1).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(flat[:, ::2] << 4 | flat[:, 1::2], 8)
    both = torch.stack([scale.T, zero.T], 2).contiguous()
    return Product(lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, both), meant)


def torchao(weight: Tensor) -> Product:
    """torchao's weight-only integers of 4 bits in the layout it has for tensor cores."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    layer = _layer(weight)
    quantize_(layer, Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d"))
    one = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    # What it makes of unit vectors: sums of one term.
    return Product(layer, layer(one).T.float())


def gemlite(weight: Tensor) -> Product:
    """GemLite's Triton kernels, integers of 4 bits in fp16, as its autotuner chooses."""
    from gemlite.core import DType, GemLiteLinear

    codes, scale, meant = _symmetric(weight.half())
    width, kind = weight.shape[1], DType.FP16
    layer = GemLiteLinear(
        4, group_size=GROUP, in_features=width, out_features=len(weight), input_dtype=kind, output_dtype=kind
    )
    layer.pack(codes, scale, torch.full_like(scale, 8), None)
    return Product(layer, meant, torch.float16)


def marlin(weight: Tensor) -> Product:
    """Marlin: integers of 4 bits in fp16."""
    from marlin import Layer

    _, scale, meant = _symmetric(weight.half())
    layer = Layer(weight.shape[1], len(weight), groupsize=GROUP).to(weight.device)
    layer.pack(_layer(meant.half()), scale)
    return Product(layer, meant, torch.float16)


def _symmetric(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 (out, in), scales (out, groups) and the weight that they stand for, with 8 as the code of zero."""
    grouped = weight.float().unflatten(1, (-1, GROUP))
    scale = (grouped.abs().amax(2) / 7).to(weight.dtype)
    codes = (grouped / scale.float()[..., None]).round().clamp(-8, 7)
    return (codes + 8).flatten(1).to(torch.uint8), scale, (codes * scale.float()[..., None]).flatten(1)


def _layer(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
