"""Puts 8-bit products into the linear layers of blocks while a model trains. See `hayless.kernels.fp8_training`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.kernels.fp8 import CAPABILITY, EVEN
from hayless.kernels.fp8_training import fp8_linear
from hayless.methods.memory.float8_linears import Float8LinearsConfig
from hayless.train.blocks import Forward, blocks, wrapped


class Float8Linears:
    """Fills the memory slot."""

    @staticmethod
    def install(model: PreTrainedModel, config: Float8LinearsConfig) -> AbstractContextManager[None]:
        """Multiply 8-bit floats in training mode; in evaluation layers are as they were.

        NotSupported on devices without such products, and for blocks whose layers they do not serve.
        """
        check_device(model.device)
        names = {module: name for name, module in model.named_modules()}
        layers = [module for block in blocks(model) for module in block.modules() if type(module) is nn.Linear]
        # Branches of adapters are thin, and theirs to multiply.
        chosen = [layer for layer in layers if "lora_" not in names[layer]]
        if not chosen:
            raise NotSupported(
                f"The blocks of {type(model).__name__} have no linear layers that float8_linears serves."
            )
        for layer in chosen:
            if layer.in_features % EVEN or layer.out_features % EVEN:
                raise NotSupported(
                    f"{names[layer]} is {layer.out_features} × {layer.in_features}; 8-bit products take multiples of"
                    f" {EVEN}.",
                    hint="Take float8_linears out of memory.",
                )
        return wrapped([*chosen], _eight_bits)


def check_device(device: torch.device) -> None:
    """NotSupported where a device multiplies no 8-bit floats."""
    if device.type != "cuda" or torch.version.hip is not None:
        raise NotSupported(
            f"float8_linears needs an NVIDIA GPU that multiplies 8-bit floats; the model is on {device}.",
            hint="Take float8_linears out of memory.",
        )
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        found, least = (".".join(map(str, pair)) for pair in (torch.cuda.get_device_capability(device), CAPABILITY))
        raise NotSupported(
            f"float8_linears needs compute capability {least}; {device} has {found}.",
            hint="Take float8_linears out of memory.",
        )


def _eight_bits(layer: Any, forward: Forward) -> Forward:
    return lambda x: fp8_linear(x, layer.weight, layer.bias) if layer.training else forward(x)
