"""Adding LoRA branches to a loaded model, PEFT's files both ways, and merging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout
from hayless.core.method import Aspect, MethodConfig
from hayless.core.registry import method_of
from hayless.methods.adapters.lora import layer, peft_config
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.adapters.lora.predict import targets_of
from hayless.methods.common.adapting import fill, freeze, modules_of, peft_names, peft_task, thaw, trained
from hayless.methods.common.sites import PEFT_PREFIX, Target, another
from hayless.methods.common.weights import plain_ledger
from hayless.model.merging import PackedBase
from hayless.model.transform import AdapterFiles, Change, Context, record

_PARTS = ("lora_A", "lora_B")


class Lora:
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: LoraConfig, context: Context) -> Change:
        """Freeze the model and add a branch to each target; the model computes what it did before."""
        chosen = _add(model, config)
        generator = torch.Generator().manual_seed(context.seed)
        for _, module, _ in chosen:
            layer.draw(module, generator)
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
            f"{PEFT_PREFIX}{path}.{part}.weight": getattr(module, part).weight.detach().float()
            for path, module, _ in chosen
            for part in _PARTS
        }
        found = peft_config.write(
            config,
            base=model.config.name_or_path or "",
            task=peft_task(model),
            modules=peft_names(model, [path for path, *_ in chosen]),
            transposed=all(target.row.layout is Layout.CONV1D for *_, target in chosen),
        )
        return AdapterFiles(found, tensors)

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """Our config for PEFT's; NotSupported names what is not honoured."""
        return peft_config.read(adapter_config)

    @staticmethod
    def load(model: PreTrainedModel, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
        """Fill the branches. FileDamaged for tensors that are missing, unexpected or misshapen."""
        wanted = {
            f"{PEFT_PREFIX}{path}.{part}.weight": getattr(module, part).weight
            for path, module, _ in _modules(model, config)
            for part in _PARTS
        }
        fill(wanted, tensors)

    @staticmethod
    def remove(model: PreTrainedModel, config: LoraConfig) -> None:
        """Take the branches off; what is not packed trains again."""
        for _, module, _ in list(_modules(model, config)):
            layer.detach(module)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: LoraConfig, base: PackedBase | None = None) -> Change:
        """W ← W + scaling·BA, rounded once to W's dtype; the branches go, and what is not packed trains again.

        NotSupported for packed weights that `base` does not open, and for values that a method set whose work would be
        undone.
        """
        chosen, base = list(_modules(model, config)), base or PackedBase(model)
        base.check((path, module) for path, module, _ in chosen)
        _refuse_merge(model, config, chosen)
        with torch.no_grad():
            for path, module, target in chosen:
                delta = layer.update(module, config.scaling)
                with base.opened(path, module):
                    weight = module.weight
                    weight.copy_(weight.float() + (delta.T if target.row.layout is Layout.CONV1D else delta))
                    layer.detach(module)
        thaw(model, config)
        return Change(config.method, tuple(path for path, *_ in chosen))


def _add(model: PreTrainedModel, config: LoraConfig) -> list[tuple[str, Any, Target]]:
    """Freeze the model and add branches of zeros. Refuses before anything is changed."""
    if any(hasattr(module, part) for module in model.modules() for part in _PARTS):
        raise another(config.method)
    chosen = list(_modules(model, config))
    freeze(model, config.method)
    for _, module, target in chosen:
        layer.attach(module, target.row.in_features, target.row.out_features, config)
    return chosen


def _modules(model: PreTrainedModel, config: LoraConfig) -> Iterator[tuple[str, Any, Target]]:
    """Each target's path, module and row."""
    return modules_of(model, targets_of(plain_ledger(model), config))


def _refuse_merge(model: PreTrainedModel, config: LoraConfig, chosen: list[tuple[str, Any, Target]]) -> None:
    roles = {target.row.role for *_, target in chosen}
    for other in record(model):
        claimed = [claim for claim in method_of(other).claims(other) if claim.aspect is Aspect.VALUES]
        if any(claim.roles & roles for claim in claimed):
            raise NotSupported(
                f"Merging would undo {other.method}: the sum W + BA is not what {other.method} made of W.",
                hint="Save base and adapter side by side (merge: false).",
            )
