"""Which transforms a model folder has had: its own record, or what another library's `quantization_config` comes to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.families import dims_of, ledger_of
from hayless.core.files import WeightFiles
from hayless.core.method import Ecosystem, MethodConfig, Part
from hayless.core.registry import methods, record_of

_FIELD = "quantization_config"


def is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether a folder with this config.json holds packed weights in another library's layout."""
    return bool(config.get(_FIELD))


def record_in(folder: Path, config: Mapping[str, Any]) -> list[MethodConfig]:
    """The transforms that the model in `folder` has had, in order; `config` is the content of its config.json.

    NotSupported for weights that no method here reads, naming what cannot be honoured.
    """
    if config.get("hayless") is not None or not is_foreign(config):
        return record_of(config.get("hayless"))
    found = dict(config[_FIELD])
    library = found.get("quant_method", "an unnamed method")
    readers = [ecosystem for ecosystem in _ecosystems() if ecosystem.quant_method == library]
    if not readers:
        known = sorted({ecosystem.quant_method for ecosystem in _ecosystems()})
        raise NotSupported(
            f"The weights are quantized by {library}; such checkpoints are not read.",
            hint=f"Those of {', '.join(known)} are.",
        )
    files, ledger = WeightFiles(folder), ledger_of(dims_of(config))
    if not files.names:
        raise NotSupported(
            f"What {library} did to the model shows only in its weights, and {folder} has none.",
            hint="Give the folder with its safetensors files.",
        )
    for ecosystem in readers:
        method = ecosystem.read(found, files, ledger)
        if method is not None:
            return [method]
    raise NotSupported(f"No method here reads this kind of {library}'s checkpoints: {str(found)[:200]}.")


def without_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the model itself."""
    return {name: value for name, value in config.items() if name != _FIELD}


def ecosystem_of(name: str) -> Ecosystem:
    """The layout that formats and rows call `name`."""
    return next(ecosystem for ecosystem in _ecosystems() if ecosystem.name == name)


def _ecosystems() -> list[Ecosystem]:
    found = {ecosystem.name: ecosystem for method in methods([Part.TRANSFORM]) for ecosystem in method.ecosystems}
    return list(found.values())
