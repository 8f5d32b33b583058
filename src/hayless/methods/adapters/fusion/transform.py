"""Fusing modules on a loaded model, and the files it is saved as: PEFT's folder with a kind that PEFT has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.beside import BOTTLENECKS, FUSION, fusion_of
from hayless.core.compose import unmergeable
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.methods.adapters.fusion import layer
from hayless.methods.adapters.fusion.config import FusionConfig, settled
from hayless.methods.adapters.fusion.predict import Site, sites_of, tensors_of
from hayless.methods.common.adapting import (
    fill,
    freeze,
    peft_base,
    read_modules,
    refuse_marked,
    thaw,
    trained,
)
from hayless.methods.common.behind import sublayer_ends
from hayless.methods.common.peft_fields import refuse_others, required
from hayless.methods.common.sites import PEFT_PREFIX
from hayless.methods.common.weights import plain_ledger
from hayless.model.adapters import Adapter
from hayless.model.merging import PackedBase
from hayless.model.transform import AdapterFiles, Change, Context

_FIELDS = ("modules", "width", "value")
_PEFT_TYPE = "ADAPTER_FUSION"


class Fusion:
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: FusionConfig, context: Context) -> Change:
        """Freeze the model, put the modules on it, and attention over them.

        RequestError for modules of different bases, FileDamaged for one that is not whole.
        """
        made = settled(config)
        folders = [Path(each) for each in config.modules if isinstance(each, str)]
        if len(folders) < len(config.modules):
            raise RequestError("fusion.modules has settings without values.", hint="Name folders of trained adapters.")
        modules = read_modules(model, folders)
        Fusion.restore(model, made)
        generator = torch.Generator().manual_seed(context.seed)
        chosen = list(_modules(model, made))
        for path, module, _, site in chosen:
            own = getattr(module, site.name)
            given = _given(path, site, modules)
            fill({name: own.get_parameter(name) for name in given}, given)
            layer.draw(module, site, generator)
        return Change(config.method, tuple(path for path, *_ in chosen), figures=trained(model), leaves=(made,))

    @staticmethod
    def restore(model: PreTrainedModel, config: FusionConfig) -> None:
        """Freeze the model and add fusions of zeros."""
        refuse_marked(model, config.method, (FUSION, *map(fusion_of, BOTTLENECKS)))
        chosen = list(_modules(model, config))
        freeze(model, config.method)
        for _, last, first, site in chosen:
            layer.attach(last, first, site, config)

    @staticmethod
    def export(model: PreTrainedModel, config: FusionConfig) -> AdapterFiles:
        """The modules and the attention over them, in float32. PEFT has no such kind and refuses it by its name."""
        found = {
            **peft_base(model, _PEFT_TYPE),
            **{field: config.model_dump(mode="json")[field] for field in _FIELDS},
        }
        return AdapterFiles(found, {name: tensor.detach().float() for name, tensor in _tensors(model, config).items()})

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """The config that `export` wrote; NotSupported names what is not honoured."""
        refuse_others(adapter_config, _PEFT_TYPE, _FIELDS)
        required(adapter_config, *_FIELDS)
        if any(not isinstance(each, dict) or "method" not in each for each in adapter_config["modules"]):
            raise FileDamaged("adapter_config.json: modules has an entry that is no module's settings.")
        return configure("fusion", **{field: adapter_config[field] for field in _FIELDS})

    @staticmethod
    def load(model: PreTrainedModel, config: FusionConfig, tensors: dict[str, Tensor]) -> None:
        """Fill modules and attention. FileDamaged for tensors that are missing, unexpected or misshapen."""
        fill(_tensors(model, config), tensors)

    @staticmethod
    def remove(model: PreTrainedModel, config: FusionConfig) -> None:
        """Take everything off; what is not packed trains again."""
        for _, module, _, site in list(_modules(model, config)):
            layer.detach(module, site)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: FusionConfig, base: PackedBase | None = None) -> Change:
        """NotSupported: no weight of the base can hold attention."""
        raise unmergeable(config)


def _given(path: str, site: Site, modules: Sequence[Adapter]) -> Mapping[str, Tensor]:
    """What a fusion gets of the modules at a path, each filled up with zeros to the largest rank and with its scaling
    taken into what comes last."""

    def each(part: str, *, scaled: bool = False, ranked: int | None = None) -> list[Tensor]:
        found = []
        for module in modules:
            tensor = module.tensors[f"{PEFT_PREFIX}{path}.{part}"].float()
            tensor = tensor * (module.config.scaling if scaled else 1)  # type: ignore[attr-defined]
            if ranked is not None:
                missing = site.rank - tensor.shape[ranked]
                tensor = F.pad(tensor, (0,) * (2 * (tensor.dim() - 1 - ranked)) + (0, missing))
            found.append(tensor)
        return found

    thin, wide = (f"{site.member}.down", f"{site.member}.up") if site.member else ("lora_A", "lora_B")
    given = {
        "thin.weight": torch.stack(each(f"{thin}.weight", ranked=0)),
        "wide.weight": torch.cat(each(f"{wide}.weight", scaled=True, ranked=1), 1),
    }
    if site.member:
        given["thin.bias"] = torch.cat(each(f"{thin}.bias", ranked=0))
        given["shift.weight"] = torch.stack(each(f"{wide}.bias", scaled=True), 1)
    return given


def _modules(model: PreTrainedModel, config: FusionConfig) -> Iterator[tuple[str, Any, Any, Site]]:
    """Of each place the path of the module that has it, that module, and the first one of its sublayer."""
    ledger = plain_ledger(model)
    for site in sites_of(ledger, config):
        for path, last, first in sublayer_ends(model, ledger, site.target, parallel=site.parallel):
            yield path, last, first, site


def _tensors(model: PreTrainedModel, config: FusionConfig) -> dict[str, Tensor]:
    return {
        f"{PEFT_PREFIX}{path}.{site.name}.{name}": getattr(module, site.name).get_parameter(name)
        for path, module, _, site in _modules(model, config)
        for name in tensors_of(site, config)
    }
