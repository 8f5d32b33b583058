"""The network, and the hooks that add what it gives to what a sublayer gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hayless.methods.adapters.bottleneck.config import BottleneckConfig
from hayless.methods.common.behind import add_behind
from hayless.methods.common.thin import thin_zeros, working_dtype

_STD = 1e-2
"""Deviation of the first values (Houlsby et al. 2019, section 3.6)."""
_HANDLES = "bottleneck_handles"


class Bottleneck(nn.Module):
    """scaling · up(f(down(x))), in float32, computed in the dtype of the products around it."""

    def __init__(self, wide: int, config: BottleneckConfig, device: torch.device) -> None:
        super().__init__()
        self.down = thin_zeros(wide, config.width, device, bias=True)
        self.up = thin_zeros(config.width, wide, device, bias=True)
        self.relu = config.activation == "relu"
        self.scaling = config.scaling

    def forward(self, x: Tensor) -> Tensor:
        """x (…, wide) → (…, wide)."""
        dtype = working_dtype(x)
        narrow = F.linear(x, self.down.weight.to(dtype), self.down.bias.to(dtype))
        narrow = F.relu(narrow) if self.relu else F.gelu(narrow)
        wide = F.linear(narrow, self.up.weight.to(dtype), self.up.bias.to(dtype))
        return wide if self.scaling == 1 else wide * self.scaling


def attach(last: Any, first: Any, wide: int, config: BottleneckConfig) -> None:
    """Put a bottleneck of zeros behind the last module of a sublayer; in parallel it reads what the first is given."""
    device = next(tensor.device for tensor in (*last.parameters(), *last.buffers()))
    last.add_module(config.kind, Bottleneck(wide, config, device))
    setattr(last, _HANDLES, add_behind(last, first, config.kind, parallel=config.form == "parallel"))


def draw(module: Any, config: BottleneckConfig, generator: torch.Generator) -> None:
    """Near-identity values, or a second layer of zeros; biases are zero."""
    network = getattr(module, config.kind)
    for linear in (network.down, network.up):
        if linear is network.down or config.initial == "near_identity":
            start = torch.empty(linear.weight.shape)
            nn.init.trunc_normal_(start, std=_STD, a=-2 * _STD, b=2 * _STD, generator=generator)
            linear.weight.data.copy_(start)


def detach(module: Any, kind: str) -> None:
    """Take the bottleneck away."""
    for handle in getattr(module, _HANDLES):
        handle.remove()
    delattr(module, _HANDLES)
    delattr(module, kind)
