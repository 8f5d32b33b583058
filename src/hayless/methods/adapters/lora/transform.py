"""Adding LoRA branches to a loaded model, PEFT's files both ways, and merging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.beside import MAGNITUDE
from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout
from hayless.core.method import Aspect, MethodConfig
from hayless.core.registry import method_of
from hayless.methods.adapters.lora import layer, peft_config
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.adapters.lora.predict import Site, sites_of
from hayless.methods.common.adapting import (
    check_tensors,
    fill,
    freeze,
    modules_of,
    peft_names,
    peft_task,
    thaw,
    trained,
)
from hayless.methods.common.sites import PEFT_PREFIX, another
from hayless.methods.common.weights import plain_ledger
from hayless.methods.common.whole_modules import check_whole, take_back, train_whole, whole_names, whole_tensors
from hayless.model.merging import PackedBase
from hayless.model.transform import AdapterFiles, Change, Context, LowRank, record

_PARTS = ("lora_A", "lora_B")


class Lora:
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: LoraConfig, context: Context) -> Change:
        """Freeze the model and add a branch to each target; the model computes what it did before."""
        chosen = _add(model, config)
        generator = torch.Generator().manual_seed(context.seed)
        for _, module, site in chosen:
            if config.initial == "pissa":
                layer.draw_singular(module, site.scaling)
            else:
                layer.draw(module, generator)
            if config.dora:
                layer.start_lengths(module, site.scaling)
        return Change(config.method, tuple(path for path, *_ in chosen), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: LoraConfig) -> None:
        """Freeze the model and add empty branches."""
        _add(model, config)

    @staticmethod
    def export(model: PreTrainedModel, config: LoraConfig) -> AdapterFiles:
        """The adapter as PEFT writes it, in float32."""
        chosen = list(_modules(model, config))
        tensors = {
            f"{PEFT_PREFIX}{path}.{part}.weight": factor.detach().float()
            for path, module, _ in chosen
            for part, factor in zip(_PARTS, layer.factors(module), strict=True)
        }
        for name, tensor in _others(model, config, chosen).items():
            tensors[name] = tensor.detach().float()
        paths = [path for path, *_ in chosen]
        found = peft_config.write(
            config.in_files,
            base=model.config.name_or_path or "",
            task=peft_task(model),
            modules=peft_names(model, paths),
            sites=sites_of(plain_ledger(model), config.in_files),
            transposed=all(site.target.row.layout is Layout.CONV1D for *_, site in chosen),
            whole=whole_names(model, config.whole, config.method),
        )
        return AdapterFiles(found, tensors)

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """Our config for PEFT's; NotSupported names what is not honoured."""
        return peft_config.read(adapter_config)

    @staticmethod
    def load(model: PreTrainedModel, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
        """Fill the branches, and what trains whole, for a config that `read` gave.

        FileDamaged for missing, unexpected or misshapen tensors.
        """
        chosen = list(_modules(model, config))
        wanted = {
            f"{PEFT_PREFIX}{path}.{part}.weight": getattr(module, part).weight
            for path, module, _ in chosen
            for part in _PARTS
        }
        fill(wanted | _others(model, config, chosen), tensors)

    @staticmethod
    def low_rank(model: PreTrainedModel, config: LoraConfig, tensors: dict[str, Tensor]) -> dict[str, LowRank]:
        """What files add to each module, for a config that `read` gave: scaling · B(A x).

        NotSupported for DoRA and modules that trained whole, FileDamaged for missing, unexpected or misshapen tensors.
        """
        for field, used in (("dora", config.dora), ("whole", bool(config.whole))):
            if used:
                raise NotSupported(f"An adapter of lora with {field} is no sum of low-rank products.")
        chosen = list(_modules(model, config))
        wanted: dict[str, tuple[int, ...]] = {}
        for path, _, site in chosen:
            row = site.target.row
            shapes = (site.rank, row.in_features), (row.out_features, site.rank)
            wanted |= {f"{PEFT_PREFIX}{path}.{part}.weight": shape for part, shape in zip(_PARTS, shapes, strict=True)}
        check_tensors(wanted, tensors)
        found = {}
        for path, _, site in chosen:
            a, b = (tensors[f"{PEFT_PREFIX}{path}.{part}.weight"] for part in _PARTS)
            found[path] = LowRank(a, b, site.scaling)
        return found

    @staticmethod
    def remove(model: PreTrainedModel, config: LoraConfig) -> None:
        """Take the branches off; what is not packed trains again, and what trained whole is what it was."""
        for _, module, _ in list(_modules(model, config)):
            layer.detach(module)
        take_back(model, config.whole, config.method, keep=False)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: LoraConfig, base: PackedBase | None = None) -> Change:
        """W ← W + scaling·BA (with DoRA at its trained lengths), rounded once to W's dtype; the branches go, and what
        is not packed trains again.

        NotSupported for packed weights that `base` does not open, and for values that a method set whose work would be
        undone.
        """
        chosen, base = list(_modules(model, config)), base or PackedBase(model)
        base.check((path, module) for path, module, _ in chosen)
        _refuse_merge(model, config, chosen)
        with torch.no_grad():
            for path, module, site in chosen:
                with base.opened(path, module):
                    module.weight.copy_(layer.merged(module, site.scaling))
                    layer.detach(module)
        take_back(model, config.whole, config.method, keep=True)
        thaw(model, config)
        return Change(config.method, tuple(path for path, *_ in chosen))


def _add(model: PreTrainedModel, config: LoraConfig) -> list[tuple[str, Any, Site]]:
    """Freeze the model and add branches of zeros. Refuses before anything is changed."""
    if any(hasattr(module, part) for module in model.modules() for part in _PARTS):
        raise another(config.method)
    chosen = list(_modules(model, config))
    check_whole(model, config.whole, config.method)
    freeze(model, config.method)
    for _, module, site in chosen:
        row = site.target.row
        layer.attach(module, row.in_features, row.out_features, config, site)
    train_whole(model, config.whole, config.method)
    return chosen


def _modules(model: PreTrainedModel, config: LoraConfig) -> Iterator[tuple[str, Any, Site]]:
    """Each target's path, module and site."""
    for site in sites_of(plain_ledger(model), config):
        for path, module, _ in modules_of(model, [site.target]):
            yield path, module, site


def _others(model: PreTrainedModel, config: LoraConfig, chosen: list[tuple[str, Any, Site]]) -> dict[str, Tensor]:
    """What is trained beside the thin matrices, by the names that PEFT's files have for it."""
    found = {
        f"{PEFT_PREFIX}{path}.{MAGNITUDE}": getattr(module, MAGNITUDE) for path, module, _ in chosen if config.dora
    }
    return found | whole_tensors(model, config.whole, config.method)


def _refuse_merge(model: PreTrainedModel, config: LoraConfig, chosen: list[tuple[str, Any, Site]]) -> None:
    roles = {site.target.row.role for *_, site in chosen}
    for other in record(model):
        claimed = [claim for claim in method_of(other).claims(other) if claim.aspect is Aspect.VALUES]
        if any(claim.roles & roles for claim in claimed):
            raise NotSupported(
                f"Merging would undo {other.method}: the sum W + BA is not what {other.method} made of W.",
                hint="Save base and adapter side by side (merge: false).",
            )
