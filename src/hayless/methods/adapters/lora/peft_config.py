"""PEFT's adapter_config.json, written and read. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.registry import configure
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.adapters.lora.predict import Site
from hayless.methods.common.peft_fields import module_names, refuse_others, required
from hayless.methods.common.targets import NAMES

_HONOURED = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
}
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
    config: LoraConfig,
    *,
    base: str,
    task: str | None,
    modules: Sequence[str],
    sites: Sequence[Site],
    transposed: bool,
    whole: Sequence[str] | None,
) -> dict[str, Any]:
    """adapter_config.json of a trained adapter. `modules` are names or paths, `sites` where branches of which rank are,
    `transposed` says that all modules are Conv1D, `whole` are names of what trains whole.
    """
    alphas = {path: site.alpha for site in sites for path in site.target.paths if site.alpha != config.alpha}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "rank_pattern": {path: site.rank for site in sites for path in site.target.paths if site.rank != config.rank},
        "alpha_pattern": {path: _plain(alpha) for path, alpha in alphas.items()},
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "target_modules": list(modules),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None if whole is None else list(whole),
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
        dora=found.get("use_dora", False),
        ranks=_patterns(found, "rank_pattern"),
        alphas=_patterns(found, "alpha_pattern"),
        whole=_whole(found),
        targets=modules,
    )
    assert isinstance(config, LoraConfig)
    return config


def _patterns(found: dict[str, Any], field: str) -> dict[str, Any]:
    """Values by module. PEFT takes keys for regular expressions; names and paths are read."""
    given = found.get(field) or {}
    names = {key.removeprefix("^").replace("\\.", "."): value for key, value in given.items()}
    odd = next((name for name in names if not re.fullmatch(r"[\w.]+", name)), None)
    if odd is not None:
        raise NotSupported(f"{field} has the pattern {odd!r}.", hint="Write the names of the modules out.")
    return {f".{name}" if name in NAMES else name: value for name, value in names.items()}


def _whole(found: dict[str, Any]) -> tuple[str, ...]:
    given = found.get("modules_to_save") or ()
    if isinstance(given, str):
        raise NotSupported(f"modules_to_save = {given!r} is not a list of modules' names.")
    return tuple(given)


def _plain(alpha: float) -> float:
    return int(alpha) if alpha.is_integer() else alpha


def _harmless(name: str, value: Any) -> bool:
    if name == "bias":
        return bool(value == "none")
    return name == "init_lora_weights" and value in _PLAIN_STARTS
