"""How other packages pack the linear layers of a model's blocks, on a CPU.

Their 4-bit weights are unpacked again to the model's dtype, since their own products would round inputs on the
way: what is compared is what packing did. Products of integers are theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Pack = Callable[[transformers.PreTrainedModel], object]


@cache
def blocks_of_four_bits(kind: str, *, double: bool, block_size: int = 64) -> Pack:
    """bitsandbytes' nf4 or fp4."""

    def pack(model: transformers.PreTrainedModel) -> None:
        from bitsandbytes import functional

        def there_and_back(weight: Tensor) -> Tensor:
            codes, state = functional.quantize_4bit(
                weight, blocksize=block_size, quant_type=kind, compress_statistics=double
            )
            return functional.dequantize_4bit(codes, state)

        _rewrite(model, there_and_back)

    return pack


@cache
def int8(threshold: float) -> Pack:
    """bitsandbytes' LLM.int8(), with its own products."""

    def pack(model: transformers.PreTrainedModel) -> None:
        import bitsandbytes

        for module, name, linear in _linears(model):
            packed = bitsandbytes.nn.Linear8bitLt(
                linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=threshold
            )
            packed.load_state_dict(linear.state_dict())
            setattr(module, name, packed.to("cpu"))

    return pack


@cache
def integers(bits: int, group_size: int, *, symmetric: bool = True) -> Pack:
    """torchao's integers, nearest, with a scale a group and a zero where they are not symmetric."""

    def pack(model: transformers.PreTrainedModel) -> None:
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
        from torchao.quantization.quant_primitives import MappingType

        mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
        config = IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerGroup(group_size), mapping)
        quantize_(model, config, _in_a_block)

    return pack


@cache
def dynamic_int8() -> Pack:
    """torchao's 8-bit integers, of inputs too, a scale a token and a row."""

    def pack(model: transformers.PreTrainedModel) -> None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig(), _in_a_block)

    return pack


@cache
def float8() -> Pack:
    """torchao's e4m3 with a scale a row; weights only, since on a CPU it multiplies no such inputs."""

    def pack(model: transformers.PreTrainedModel) -> None:
        from torchao.quantization import Float8WeightOnlyConfig, quantize_

        quantize_(model, Float8WeightOnlyConfig(), _in_a_block)

    return pack


def _in_a_block(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear) and ".layers." in path


def _linears(model: transformers.PreTrainedModel) -> list[tuple[Any, str, nn.Linear]]:
    """Each linear layer of a block, its name there and the module that has it."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and _in_a_block(module, path):
            above, _, name = path.rpartition(".")
            found.append((model.get_submodule(above), name, module))
    return found


@torch.no_grad()
def _rewrite(model: transformers.PreTrainedModel, change: Callable[[Tensor], Tensor]) -> None:
    for _, _, linear in _linears(model):
        linear.weight.copy_(change(linear.weight))
