"""Mixtures of LoRAs on a loaded model, and the files they are saved as: PEFT's folder with a kind that PEFT has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.beside import MIXTURE
from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.methods.adapters.lora_moe import layer
from hayless.methods.adapters.lora_moe.config import LoraMoeConfig, is_stack, targets_of, tensors_of
from hayless.methods.common.adapting import fill, freeze, modules_of, peft_base, refuse_marked, thaw, trained
from hayless.methods.common.peft_fields import module_names, refuse_others, required
from hayless.methods.common.sites import PEFT_PREFIX, Target
from hayless.methods.common.weights import plain_ledger
from hayless.model.merging import PackedBase
from hayless.model.packing import PackedModule
from hayless.model.transform import AdapterFiles, Change, Context

_FIELDS = ("experts", "rank", "alpha", "top_k", "router", "temperature")
_PEFT_TYPE = "LORA_MOE"


class LoraMoe:
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: LoraMoeConfig, context: Context) -> Change:
        """Freeze the model and add mixtures, and a LoRA to each expert; the model computes what it did before.

        RequestError for a router that is made of modules that were trained."""
        if config.router == "arrow":
            raise RequestError(
                "lora_moe.router = 'arrow' routes by what modules have learnt, and these have learnt nothing.",
                hint="Apply retrieve (per: token), which makes such a mixture of a library's modules.",
            )
        LoraMoe.restore(model, config)
        generator = torch.Generator().manual_seed(context.seed)
        chosen = list(_modules(model, config))
        for _, module, target in chosen:
            layer.draw(module, target, generator)
        return Change(config.method, tuple(dict.fromkeys(path for path, *_ in chosen)), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: LoraMoeConfig) -> None:
        """Freeze the model and add mixtures of zeros."""
        refuse_marked(model, config.method, (MIXTURE,))
        chosen = list(_modules(model, config))
        freeze(model, config.method)
        for _, module, target in chosen:
            layer.attach(module, target, config)

    @staticmethod
    def export(model: PreTrainedModel, config: LoraMoeConfig) -> AdapterFiles:
        """The adapter in float32. PEFT has no such kind and refuses the folder by its name."""
        found = {
            **peft_base(model, _PEFT_TYPE),
            **{field: getattr(config, field) for field in _FIELDS},
            "target_modules": sorted({_path(path, target) for path, _, target in _modules(model, config)}),
        }
        return AdapterFiles(found, {name: tensor.detach().float() for name, tensor in _tensors(model, config).items()})

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """The config that `export` wrote; NotSupported names what is not honoured."""
        refuse_others(adapter_config, _PEFT_TYPE, (*_FIELDS, "target_modules"))
        required(adapter_config, *_FIELDS)
        targets = module_names(adapter_config, "target_modules")
        return configure("lora_moe", targets=targets, **{field: adapter_config[field] for field in _FIELDS})

    @staticmethod
    def load(model: PreTrainedModel, config: LoraMoeConfig, tensors: dict[str, Tensor]) -> None:
        """Fill the mixtures. FileDamaged for tensors that are missing, unexpected or misshapen."""
        fill(_tensors(model, config), tensors)

    @staticmethod
    def remove(model: PreTrainedModel, config: LoraMoeConfig) -> None:
        """Take the mixtures off; what is not packed trains again."""
        for _, module, target in list(_modules(model, config)):
            layer.detach(module, target)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: LoraMoeConfig, base: PackedBase | None = None) -> Change:
        """W_e ← W_e + scaling · B_e A_e for each expert, rounded once to W's dtype; everything trains again.

        NotSupported where there is a mixture, which is no linear function, and for packed experts.
        """
        chosen = list(_modules(model, config))
        for path, module, target in chosen:
            if not is_stack(target):
                raise NotSupported(
                    f"The mixture beside {path} cannot be merged: its gate makes it a function that is not linear.",
                    hint="Save base and adapter side by side (merge: false).",
                )
            if isinstance(module, PackedModule):
                raise NotSupported(f"{path} is packed: its codes cannot be added to.", hint="Save side by side.")
        for _, module, target in chosen:
            weight = getattr(module, target.row.parameter)
            with torch.no_grad():
                weight.copy_(weight.float() + layer.update(module, target, config.scaling))
            layer.detach(module, target)
        thaw(model, config)
        return Change(config.method, tuple(dict.fromkeys(path for path, *_ in chosen)))


def _modules(model: PreTrainedModel, config: LoraMoeConfig) -> Iterator[tuple[str, Any, Target]]:
    """Each target's path, module and row; a stack comes once for each of its parameters that is meant."""
    return modules_of(model, targets_of(plain_ledger(model), config))


def _path(path: str, target: Target) -> str:
    """What names a target: of a stack, its parameter too."""
    return f"{path}.{target.row.parameter}" if is_stack(target) else path


def _tensors(model: PreTrainedModel, config: LoraMoeConfig) -> dict[str, Tensor]:
    return {
        f"{PEFT_PREFIX}{path}.{name}": module.get_parameter(name)
        for path, module, target in _modules(model, config)
        for name in tensors_of(target, config)
    }
