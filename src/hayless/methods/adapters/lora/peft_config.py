"""PEFT's adapter_config.json, written and read. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hayless.core.errors import FileDamaged, NotSupported
from hayless.core.registry import configure
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.common.targets import NAMES

_HONOURED = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",  # follows from the module
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
"""Fields that change nothing about a trained adapter (or nothing without another field that is looked at)."""
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
    if found.get("peft_type") != "LORA":
        raise NotSupported(f"This adapter is {found.get('peft_type')!r}, not LORA.")
    odd = {name: value for name, value in found.items() if not _harmless(name, value)}
    if odd:
        listed = ", ".join(f"{name} = {value!r}" for name, value in sorted(odd.items()))
        raise NotSupported(
            f"This PEFT adapter uses what is not honoured here: {listed}.",
            hint="Merge it with PEFT itself (merge_and_unload), then load the merged model.",
        )
    modules = found.get("target_modules")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise NotSupported(
            f"target_modules = {modules!r} is not a list of modules' names.",
            hint="Patterns depend on the library that reads them; write the names out.",
        )
    missing = {"r", "lora_alpha"} - found.keys()
    if missing:
        raise FileDamaged(f"adapter_config.json has no {min(missing)}.")
    config = configure(
        "lora",
        rank=found["r"],
        alpha=found["lora_alpha"],
        dropout=found.get("lora_dropout", 0.0),
        rslora=found.get("use_rslora", False),
        targets=tuple(f".{name}" if name in NAMES else name for name in sorted(modules)),
    )
    assert isinstance(config, LoraConfig)
    return config


def _harmless(name: str, value: Any) -> bool:
    if name in _HONOURED or name in _WITHOUT_EFFECT or not value:
        return True
    if name == "bias":
        return bool(value == "none")
    return name == "init_lora_weights" and value in _PLAIN_STARTS
