"""The transformer blocks of a model, and changing how they are called for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._functorch import config as partitioning
from transformers import PreTrainedModel

from hayless.core.families import family_of

Forward = Callable[..., Any]

_RECOMPUTED = "runs_again"
_KEPT = 0.9
"""The share of what a compiled block would keep for its backward pass that it may keep. Below 1 what is elementwise is
computed again beside what needs it, and a Llama keeps 0.68; products are computed again only from 0.6 down."""


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Every block in order, the encoder's first. NotSupported for a family that is not known."""
    paths = family_of(model.config.model_type).PATHS
    return [
        block
        for path in (paths.encoder_blocks, paths.blocks)
        if path is not None
        for block in model.get_submodule(path).children()
    ]


@contextmanager
def wrapped(modules: list[nn.Module], wrap: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Let each module compute `wrap(module, its forward)` instead, while the context is open.

    No module or parameter gets another name, so files and optimizers see the same model. Contexts nest, and must be
    closed in the opposite order.
    """
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = wrap(module, module.forward)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


def mark_recomputed(forward: Forward) -> Forward:
    """Say that `forward` keeps its inputs and runs again in the backward pass."""
    setattr(forward, _RECOMPUTED, True)
    return forward


def recomputed(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks whose forward pass, as it is now, runs again in the backward pass."""
    return [block for block in blocks(model) if hasattr(block.forward, _RECOMPUTED)]


@contextmanager
def compiled(model: PreTrainedModel) -> Iterator[None]:
    """Compile each block and the norm behind them with torch.compile, while the context is open: equal blocks share one
    compilation. What is elementwise is computed again in the backward pass rather than kept, unless blocks run again as
    a whole: a policy of what those keep does not go with a budget (an assertion of PyTorch's fails)."""
    kept = 1.0 if recomputed(model) else _KEPT
    last = family_of(model.config.model_type).PATHS.final_norm
    norms = [module for path, module in model.named_modules() if path == last]
    with (
        partitioning.patch(activation_memory_budget=kept),
        wrapped([*blocks(model), *norms], lambda module, forward: torch.compile(forward)),
    ):
        yield
