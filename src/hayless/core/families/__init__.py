"""Model families as tables: how a Hugging Face config is read and which tensors the model then has.

One small file a family. The same rows serve predictions (names, shapes, bytes) and loaded models (module paths by
role), so the two cannot drift apart. To add a family: write a file like `llama.py`, name it here, and run the tests in
`tests/model/`, which compare its rows with what transformers builds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hayless.core.dims import ModelDims
from hayless.core.errors import FileDamaged, NotSupported, RequestError, nearest
from hayless.core.ledger import Ledger

FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    "gpt2": ("gpt2",),
    "opt": ("opt",),
    "gpt_neox": ("gpt_neox",),
    "mixtral": ("mixtral", "qwen3_moe"),
    "bert": ("bert",),
    "t5": ("t5",),
}
"""Family file → the `model_type`s it covers."""


def family_of(model_type: str) -> ModuleType:
    """The family module that covers `model_type`; NotSupported names what was looked for and how to add it."""
    for family, types in FAMILIES.items():
        if model_type in types:
            return import_module(f"{__name__}.{family}")
    known = sorted(name for types in FAMILIES.values() for name in types)
    near = nearest(model_type, known)
    raise NotSupported(
        f"No family covers model_type {model_type!r}; known: {', '.join(known)}.",
        hint=(f"Nearest: {near!r}. " if near else "") + "To add one, see hayless/core/families/__init__.py.",
    )


def dims_of(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims of a Hugging Face config given as a mapping (the content of config.json)."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise RequestError("The config has no model_type.", hint="Is this config.json of a transformers model?")
    if model_type == "hayless":
        if not isinstance(config.get("base_config"), Mapping):
            raise RequestError("The config has no base_config.", hint="A packed model's config.json names its base.")
        return dims_of(config["base_config"])
    dims: ModelDims = family_of(model_type).read(config)
    labels = labels_of(config)
    if labels and dims.family in ("bert", "t5"):
        raise NotSupported(f"Classifiers of the {dims.family} family are not covered, only its language models.")
    return replace(dims, labels=labels)


def labels_of(config: Mapping[str, Any]) -> int:
    """Outputs of a sequence classifier's head, 0 for a model whose `architectures` name no classifier.

    As in `dims_of`, a packed model's config has those of its base.
    """
    if isinstance(config.get("base_config"), Mapping):
        return labels_of(config["base_config"])
    architectures = config.get("architectures") or ()
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        return 0
    names = config.get("id2label")
    return int(config.get("num_labels") or (len(names) if isinstance(names, Mapping) else 2))


def ledger_of(dims: ModelDims) -> Ledger:
    """The ledger of an untouched model of these dims."""
    return Ledger(dims, tuple(family_of(dims.model_type).rows(dims)))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder as a mapping, with errors a user can act on."""
    path = folder / "config.json"
    if not path.is_file():
        raise RequestError(f"{folder} has no config.json.", hint="Give a Hugging Face model folder or a hub id.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileDamaged(f"{path} is not valid JSON: {error}.", hint="Copy the file again from its source.") from error
    if not isinstance(found, dict):
        raise FileDamaged(f"{path} holds {type(found).__name__}, not an object.")
    return found
