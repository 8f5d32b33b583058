"""Adapters that were trained before, as methods read them that make one of several. No torch, until one is read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hayless.core import atomic
from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import Part
from hayless.core.registry import methods


def trained_module(folder: Path, kinds: Collection[str] = ("LORA",)) -> Any:
    """The config of the adapter in `folder`, of one of these kinds as PEFT's files call them.

    RequestError where there is none; NotSupported for another kind, and for a LoRA that is more than one product of one
    rank and scaling beside each matrix.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise RequestError(f"{folder} has no adapter_config.json.", hint="Name the folder of a trained adapter.")
    found = atomic.read_json(path)
    kind = found.get("peft_type") if isinstance(found, dict) else None
    if kind not in kinds:
        raise NotSupported(f"{folder} holds an adapter of kind {kind!r}; those that compose are {', '.join(kinds)}.")
    reader = next(method for method in methods([Part.TRANSFORM]) if method.peft_type == kind)
    config = reader.load().read(found)
    if kind == "LORA" and not config.is_sum:
        raise NotSupported(
            f"{folder} holds a module with DoRA, trained norms or embeddings, or ranks or alphas of its own for some"
            " matrices.",
            hint="Modules compose that add one product of one rank and scaling to each matrix.",
        )
    return config
