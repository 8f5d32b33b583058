"""PEFT's folders: adapter_config.json and adapter_model.safetensors, and the base they belong to.

The base lies in `base/` beside them where it was changed in the same run; otherwise it is what
`base_model_name_or_path` names: a folder (from the adapter's own, or from where one stands) or a hub id. A folder of
ours also notes a fingerprint of the base in `hayless.json`, and refuses any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.method import Method, Part
from hayless.core.registry import methods
from hayless.model.source import local_folder
from hayless.model.tensors import fingerprint, read_tensors, tensor_names
from hayless.model.transform import note, record

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OURS = "hayless.json"
BASE = "base"


def load(folder: Path, load_base: Callable[[Path], PreTrainedModel]) -> PreTrainedModel:
    """The adapter's base with the adapter on it.

    NotSupported for kinds of adapters and fields that are not honoured, RequestError for a base that is not there or is
    another one, FileDamaged for tensors that do not fit.
    """
    found = _config(folder)
    method = _method(found.get("peft_type"))
    if not (folder / WEIGHTS).is_file():
        raise RequestError(f"{folder} has no {WEIGHTS}.", hint="Pickles (adapter_model.bin) are never read.")
    tensor_names(folder / WEIGHTS)
    part = method.load()
    config = part.read(found)
    base = base_of(folder)
    _check_base(folder, base)
    model = load_base(base)
    if any(method_of_peft(earlier.method) for earlier in record(model)):
        raise NotSupported(f"{base} has an adapter already; a second one is not covered.")
    with torch.no_grad():
        part.restore(model, config)
        part.load(model, config, dict(read_tensors([folder / WEIGHTS])))
    note(model, config)
    return model


def base_of(folder: Path) -> Path:
    """The folder of the base model of the adapter in `folder`."""
    if (folder / BASE).is_dir():
        return folder / BASE
    name = _config(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise RequestError(
            f"{folder / CONFIG} names no base model, and there is no {BASE}/ beside it.",
            hint="Set base_model_name_or_path to the base's folder or hub id.",
        )
    beside = folder / name
    if beside.is_dir() and beside.resolve() != folder.resolve():
        return beside
    try:
        return local_folder(name)
    except RequestError as error:
        raise RequestError(f"The base of the adapter in {folder} is not there. {error.message}", hint=error.hint) from None
