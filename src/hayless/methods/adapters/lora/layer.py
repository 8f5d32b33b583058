"""The branch: two thin matrices inside the module they belong to, added to its output by a forward hook.

The module itself is untouched, so a branch works beside any linear module, packed ones included, and the paths of the
base's tensors stay what they were. Names within the module (`lora_A.weight`) are those of PEFT's files.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from torch.utils.hooks import RemovableHandle

from hayless.methods.adapters.lora.config import LoraConfig


class Branch:
    """A forward hook: output + scaling · B(A(dropout(x))), computed in the dtype of A and B."""

    def __init__(self, scaling: float, dropout: float) -> None:
        self.scaling = scaling
        self.dropout = dropout

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The module's output with the branch added, in the output's dtype."""
        x = inputs[0].to(module.lora_A.weight.dtype)
        x = F.dropout(x, self.dropout, training=module.training)
        return (output + module.lora_B(module.lora_A(x)) * self.scaling).to(output.dtype)


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
