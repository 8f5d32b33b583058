"""Adapters of tiny models that change what they say, and what each says with one of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.decode.engine import Engine, Generation
from hayless.decode.options import SamplingOptions
from hayless.methods.adapters.lora.transform import Lora
from hayless.model.adapters import Adapter
from hayless.model.transform import apply
from tests import tiny

KINDS: dict[str, dict[str, Any]] = {
    "legal": {"rank": 2},
    "medical": {"rank": 5, "alpha": 40.0, "targets": ("attention",)},
    "code": {"rank": 3, "targets": ("feed_forward",), "rslora": True},
}
"""Adapters of other ranks and targets."""


def base(name: str, packing: Sequence[MethodConfig] = (), device: str = "cpu") -> Any:
    """A tiny model whose tokens depend on its blocks."""
    model = tiny.model(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if "layers" in path or ".h." in path else 2)
    model.to(device)
    if packing:
        apply(model, packing)
    return model


def adapter(name: str, seed: int, **options: Any) -> Adapter:
    """An adapter of tiny model `name` that adds much."""
    model = tiny.model(name)
    config = configure("lora", **options)
    apply(model, [config])
    generator = torch.Generator().manual_seed(seed)
    tensors = Lora.export(model, config).tensors
    return Adapter(config, {name: torch.randn(one.shape, generator=generator) for name, one in tensors.items()})


def adapters(name: str) -> dict[str, Adapter]:
    """One of each kind."""
    return {called: adapter(name, seed, **options) for seed, (called, options) in enumerate(KINDS.items())}


def alone(model: Any, worn: Adapter | None, prompt: list[int], options: SamplingOptions) -> Generation:
    """What transformers' modules say with this adapter on, and nothing beside it."""
    if worn is not None:
        worn.put_on(model)
    try:
        return Engine(model, backend="modules").generate([prompt], options)[0]
    finally:
        if worn is not None:
            worn.take_off(model)
