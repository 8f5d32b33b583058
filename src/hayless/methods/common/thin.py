"""What thin matrices beside modules share: how they are made, and the dtype they are computed in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def thin_zeros(inputs: int, outputs: int, device: torch.device, *, bias: bool = False) -> nn.Linear:
    """A linear module of zeros, in float32."""
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=device, dtype=torch.float32)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products around an input: autocast's, else its own."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
