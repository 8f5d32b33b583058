"""Bottlenecks on a loaded model, and the files they are saved as: PEFT's folder with a kind that PEFT has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.beside import BOTTLENECKS
from hayless.core.compose import unmergeable
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.methods.adapters.bottleneck import layer
from hayless.methods.adapters.bottleneck.config import BottleneckConfig, targets_of
from hayless.methods.common.adapting import fill, freeze, peft_base, refuse_marked, thaw, trained
from hayless.methods.common.behind import sublayer_ends
from hayless.methods.common.peft_fields import refuse_others, required
from hayless.methods.common.sites import PEFT_PREFIX
from hayless.methods.common.weights import plain_ledger
from hayless.model.merging import PackedBase
from hayless.model.transform import AdapterFiles, Change, Context

_FIELDS = ("width", "sublayers", "form", "activation", "scaling")
_PEFT_TYPE = "BOTTLENECK"


class BottleneckAdapters:
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: BottleneckConfig, context: Context) -> Change:
        """Freeze the model and put a network behind each sublayer."""
        BottleneckAdapters.restore(model, config)
        generator = torch.Generator().manual_seed(context.seed)
        chosen = list(_modules(model, config))
        for _, module, *_ in chosen:
            layer.draw(module, config, generator)
        return Change(config.method, tuple(path for path, *_ in chosen), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: BottleneckConfig) -> None:
        """Freeze the model and put networks of zeros behind its sublayers."""
        refuse_marked(model, config.method, BOTTLENECKS)
        chosen = list(_modules(model, config))
        freeze(model, config.method)
        for _, last, first, wide in chosen:
            layer.attach(last, first, wide, config)

    @staticmethod
    def export(model: PreTrainedModel, config: BottleneckConfig) -> AdapterFiles:
        """The adapter in float32. PEFT has no such kind and refuses the folder by its name."""
        found = {
            **peft_base(model, _PEFT_TYPE),
            **{field: getattr(config, field) for field in _FIELDS},
        }
        return AdapterFiles(found, {name: tensor.detach().float() for name, tensor in _tensors(model, config).items()})

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """The config that `export` wrote; NotSupported names what is not honoured."""
        refuse_others(adapter_config, _PEFT_TYPE, _FIELDS)
        required(adapter_config, *_FIELDS)
        return configure("bottleneck", **{field: adapter_config[field] for field in _FIELDS})

    @staticmethod
    def load(model: PreTrainedModel, config: BottleneckConfig, tensors: dict[str, Tensor]) -> None:
        """Fill the networks. FileDamaged for tensors that are missing, unexpected or misshapen."""
        fill(_tensors(model, config), tensors)

    @staticmethod
    def remove(model: PreTrainedModel, config: BottleneckConfig) -> None:
        """Take the networks away; what is not packed trains again."""
        for _, module, *_ in list(_modules(model, config)):
            layer.detach(module, config.kind)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: BottleneckConfig, base: PackedBase | None = None) -> Change:
        """NotSupported: no weight of the base can hold a function that is not linear."""
        raise unmergeable(config)


def _modules(model: PreTrainedModel, config: BottleneckConfig) -> Iterator[tuple[str, Any, Any, int]]:
    """Of each sublayer the path of its last module, that module, its first one, and the width of what it gives."""
    ledger = plain_ledger(model)
    for target in targets_of(ledger, config):
        for path, last, first in sublayer_ends(model, ledger, target, parallel=config.form == "parallel"):
            yield path, last, first, target.row.out_features


def _tensors(model: PreTrainedModel, config: BottleneckConfig) -> dict[str, Tensor]:
    return {
        f"{PEFT_PREFIX}{path}.{config.kind}.{name}": tensor
        for path, module, *_ in _modules(model, config)
        for name, tensor in getattr(module, config.kind).named_parameters()
    }
