"""PEFT's adapter_config.json, written and read. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hayless.core.registry import configure
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.common.peft_fields import module_names, refuse_others, required

_HONOURED = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}
_WITHOUT_EFFECT = {
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
}
"""Fields that change nothing without another field that is looked at."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of init_lora_weights that leave the base as it was; the others move a part of it into the adapter."""


def write(
    config: LoraConfig, *, base: str, task: str | None, modules: Sequence[str], transposed: bool
) -> dict[str, Any]:
    """adapter_config.json of a trained adapter. `modules` are names or paths, `transposed` says that all are Conv1D."""
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": list(modules),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def read(found: dict[str, Any]) -> LoraConfig:
    """Our config for PEFT's. NotSupported names each field that would change the result and is not honoured."""
    refuse_others(found, "LORA", _HONOURED | _WITHOUT_EFFECT, _harmless)
    modules = module_names(found, "target_modules")
    required(found, "r", "lora_alpha")
    config = configure(
        "lora",
        rank=found["r"],
        alpha=found["lora_alpha"],
        dropout=found.get("lora_dropout", 0.0),
        rslora=found.get("use_rslora", False),
        targets=modules,
    )
    assert isinstance(config, LoraConfig)
    return config


def _harmless(name: str, value: Any) -> bool:
    if name == "bias":
        return bool(value == "none")
    return name == "init_lora_weights" and value in _PLAIN_STARTS
