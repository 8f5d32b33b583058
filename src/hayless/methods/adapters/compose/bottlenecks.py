"""Bottlenecks as one: beside each other, which is their weighted sum, or their weights averaged (AdapterSoup,
Chronopoulou et al., 2023, arXiv:2302.07027, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hayless.methods.adapters.compose.config import ComposeConfig
from hayless.model.adapters import Adapter

_DOWN, _UP = ".down.weight", ".up.weight"


def composed_bottlenecks(config: ComposeConfig, made: Any, modules: Sequence[Adapter]) -> Adapter:
    """The bottlenecks `made`, as `result` gives them, of modules with the weights that `config` has."""
    tensors: dict[str, Tensor] = {}
    for path in [name.removesuffix(_DOWN) for name in modules[0].tensors if name.endswith(_DOWN)]:
        down, down_bias, up, up_bias = (
            [module.tensors[path + part].float() for module in modules]
            for part in (_DOWN, ".down.bias", _UP, ".up.bias")
        )
        if config.how == "separate":
            parts = [_sum(each, config.shares) for each in (down, down_bias, up, up_bias)]
        else:
            # What is added is Σ wᵢ sᵢ (Uᵢ f(Dᵢ h + dᵢ) + uᵢ), and f acts on each number by itself.
            shares = [
                share * module.config.scaling  # type: ignore[attr-defined]
                for share, module in zip(config.shares, modules, strict=True)
            ]
            wide = torch.cat([share * each for share, each in zip(shares, up, strict=True)], 1)
            parts = [torch.cat(down), torch.cat(down_bias), wide, _sum(up_bias, shares)]
        for part, tensor in zip((_DOWN, ".down.bias", _UP, ".up.bias"), parts, strict=True):
            tensors[path + part] = tensor.contiguous()
    return Adapter(made, tensors)


def _sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([share * tensor for share, tensor in zip(shares, tensors, strict=True)]).sum(0)
