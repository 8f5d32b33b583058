"""Fields of PEFT's adapter_config.json: those that every kind of adapter has, and the refusal of what is not honoured.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from hayless.core.errors import FileDamaged, NotSupported
from hayless.methods.common.targets import NAMES

_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",  # follows from the module
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
"""Fields that change nothing about a trained adapter."""


def refuse_others(
    found: dict[str, Any],
    peft_type: str,
    known: Collection[str],
    harmless: Callable[[str, Any], bool] = lambda name, value: False,
) -> None:
    """NotSupported for another kind of adapter, and for each field that is set, not `known` and not `harmless`."""
    if found.get("peft_type") != peft_type:
        raise NotSupported(f"This adapter is {found.get('peft_type')!r}, not {peft_type}.")
    odd = {
        name: value
        for name, value in found.items()
        if value and name not in known and name not in _WITHOUT_EFFECT and not harmless(name, value)
    }
    if odd:
        listed = ", ".join(f"{name} = {value!r}" for name, value in sorted(odd.items()))
        raise NotSupported(
            f"This PEFT adapter uses what is not honoured here: {listed}.",
            hint="Merge it with PEFT itself (merge_and_unload), then load the merged model.",
        )


def required(found: dict[str, Any], *names: str) -> None:
    """FileDamaged where a field is missing."""
    missing = set(names) - found.keys()
    if missing:
        raise FileDamaged(f"adapter_config.json has no {min(missing)}.")


def module_names(found: dict[str, Any], field: str) -> tuple[str, ...]:
    """The modules that a field lists, as targets. NotSupported for a pattern."""
    modules = found.get(field)
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise NotSupported(
            f"{field} = {modules!r} is not a list of modules' names.",
            hint="Patterns depend on the library that reads them; write the names out.",
        )
    return tuple(f".{name}" if name in NAMES else name for name in sorted(modules))
