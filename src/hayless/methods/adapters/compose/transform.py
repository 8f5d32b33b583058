"""One adapter of several, put on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.methods.adapters.compose import merging
from hayless.methods.adapters.compose.bottlenecks import composed_bottlenecks
from hayless.methods.adapters.compose.config import ComposeConfig, result
from hayless.methods.adapters.compose.merging import Part
from hayless.methods.common.adapting import put_on, read_modules
from hayless.model.adapters import Adapter
from hayless.model.transform import Change, Context

_A, _B = ".lora_A.weight", ".lora_B.weight"


class Compose:
    """Fills the transform slot. What it leaves on a model is an adapter like any other, and is recorded as that."""

    @staticmethod
    def apply(model: PreTrainedModel, config: ComposeConfig, context: Context) -> Change:
        """Freeze the model and put on what comes of the modules.

        Figures: trained parameters, and the share of the sum's norm that a lower rank lost. RequestError for modules of
        different bases.
        """
        adapter, figures = Compose.made(model, config, context)
        return put_on(model, config.method, adapter, figures)

    @staticmethod
    def made(model: PreTrainedModel, config: ComposeConfig, context: Context) -> tuple[Adapter, dict[str, float]]:
        """What comes of the modules, with `lost`; the model stays as it is."""
        # What does not compose is refused before any tensor is looked at.
        result(config)
        modules = read_modules(model, [Path(folder) for folder in config.modules])
        adapter, lost = composed(config, modules, seed=context.seed)
        return adapter, {"lost": lost}

    @staticmethod
    def restore(model: PreTrainedModel, config: ComposeConfig) -> None:
        """Never on a record: what it leaves is."""
        raise RequestError("compose leaves an adapter, which is what a model is restored with.")


def composed(config: ComposeConfig, modules: Sequence[Adapter], *, seed: int = 0) -> tuple[Adapter, float]:
    """The adapter that comes of `modules`, and the share of the sum's norm that its rank could not hold."""
    made = result(config)
    if made.method == "bottleneck":
        return composed_bottlenecks(config, made, modules), 0.0
    generator = torch.Generator().manual_seed(seed)
    paths = sorted({name.removesuffix(_A) for module in modules for name in module.tensors if name.endswith(_A)})
    tensors: dict[str, Tensor] = {}
    missed = whole = 0.0
    for path in paths:
        parts = [
            Part(module.tensors[path + _A], module.tensors[path + _B], scaling_of(module), share)
            for module, share in zip(modules, config.shares, strict=True)
            if path + _A in module.tensors
        ]
        (a, b), wanted = _made(config, parts, made.rank, generator)
        tensors |= {path + _A: a.contiguous(), path + _B: b.contiguous()}
        if wanted is not None:
            missed += float((wanted - b @ a).square().sum())
            whole += float(wanted.square().sum())
    return Adapter(made, tensors), (missed / whole) ** 0.5 if whole else 0.0


def _made(
    config: ComposeConfig, parts: Sequence[Part], rank: int, generator: torch.Generator
) -> tuple[merging.Pair, Tensor | None]:
    """A and B for one matrix; and the sum, where a rank may be too low for it."""
    if config.how == "concatenated":
        return merging.concatenated(parts, rank), None
    if config.how == "separate":
        return merging.separate(parts), None
    if config.how == "svd":
        return merging.truncated(parts, rank), merging.total(parts)
    deltas, weights = [part.delta for part in parts], [part.weight for part in parts]
    if config.how == "ties":
        wanted = merging.ties(deltas, weights, config.density)
    else:
        wanted = merging.dare(deltas, weights, config.density, generator)
    return merging.factored(wanted, rank), wanted


def scaling_of(module: Adapter) -> float:
    """What a LoRA module's product is multiplied by."""
    scaling: float = module.config.scaling  # type: ignore[attr-defined]
    return scaling
