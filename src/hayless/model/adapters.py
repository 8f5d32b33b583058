"""PEFT's folders: adapter_config.json and adapter_model.safetensors, and the base they belong to.

The base lies in `base/` beside them where it was changed in the same run; otherwise it is what
`base_model_name_or_path` names: a folder (from the adapter's own, or from where one stands) or a hub id. A folder of
ours also notes a fingerprint of the base in `hayless.json`, and refuses any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.families import labels_of, read_config
from hayless.core.foreign import record_in
from hayless.core.method import Method, MethodConfig, Part
from hayless.core.registry import method_of, methods
from hayless.model.anatomy import dims_of_model
from hayless.model.source import local_folder
from hayless.model.tensors import fingerprint, listed, read_tensors, tensor_names, write_tensors
from hayless.model.transform import LowRank, LowRankTransform, forget, note, record

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OURS = "hayless.json"
BASE = "base"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it was read: its method's config and its tensors, which stay where they are.

    `base_fingerprint` is that of the base that its folder noted (see `hayless.model.tensors`); None: it noted none.
    """

    config: MethodConfig
    tensors: dict[str, Tensor]
    base_fingerprint: str | None = None

    def check_base(self, base: Path) -> None:
        """RequestError where it noted another base than the one in this folder."""
        _refuse_other(self.base_fingerprint, base, "the adapter")

    def put_on(self, model: PreTrainedModel) -> None:
        """Add the adapter to its base, and note it. FileDamaged for tensors that do not fit."""
        part = method_of(self.config).load()
        with torch.no_grad():
            part.restore(model, self.config)
            try:
                part.load(model, self.config, self.tensors)
            except FileDamaged:
                part.remove(model, self.config)
                raise
        note(model, self.config)

    def take_off(self, model: PreTrainedModel) -> None:
        """Remove the adapter again; the base is as it was."""
        method_of(self.config).load().remove(model, self.config)
        forget(model, self.config)

    def low_rank(self, model: PreTrainedModel) -> dict[str, LowRank]:
        """What it adds to each module of its base, by path; the base stays as it is.

        NotSupported for an adapter that does more than add low-rank sums, FileDamaged for tensors that do not fit.
        """
        part = method_of(self.config).load()
        if not isinstance(part, LowRankTransform):
            raise NotSupported(f"An adapter of {self.config.method} is no sum of low-rank products.")
        return part.low_rank(model, self.config, self.tensors)


def read(folder: Path) -> Adapter:
    """The adapter in `folder`. NotSupported for kinds of adapters and fields that are not honoured."""
    found = _config(folder)
    method = _method(found.get("peft_type"))
    if not (folder / WEIGHTS).is_file():
        raise RequestError(f"{folder} has no {WEIGHTS}.", hint="Pickles (adapter_model.bin) are never read.")
    tensor_names(folder / WEIGHTS)
    config = method.load().read(found)
    return Adapter(config, dict(read_tensors([folder / WEIGHTS])), _noted_base(folder))


def load(folder: Path, load_base: Callable[[Path], PreTrainedModel]) -> PreTrainedModel:
    """The adapter's base with the adapter on it.

    NotSupported for kinds of adapters and fields that are not honoured, RequestError for a base that is not there or is
    another one, FileDamaged for tensors that do not fit.
    """
    adapter = read(folder)
    base = base_of(folder)
    check_base(folder, base)
    model = load_base(base)
    adapter.put_on(model)
    return model


def base_of(folder: Path) -> Path:
    """The folder of the base model of the adapter in `folder`."""
    base = _named_base(folder)
    if (base / CONFIG).is_file():
        raise NotSupported(f"The base of the adapter in {folder}, {base}, is an adapter itself; that is not covered.")
    return base


def _named_base(folder: Path) -> Path:
    if (folder / BASE).is_dir():
        return folder / BASE
    name = _config(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise RequestError(
            f"{folder / CONFIG} names no base model, and there is no {BASE}/ beside it.",
            hint="Set base_model_name_or_path to the base's folder or hub id.",
        )
    if (folder / name).is_dir():
        return folder / name
    try:
        return local_folder(name)
    except RequestError as error:
        raise RequestError(
            f"The base of the adapter in {folder} is not there. {error.message}", hint=error.hint
        ) from None


def on(model: PreTrainedModel) -> MethodConfig | None:
    """The adapter that a model has, from its record."""
    return next((config for config in record(model) if method_of(config).peft_type), None)


def checked_base(model: PreTrainedModel, base: str | Path, target: Path) -> str:
    """What an adapter in `target` calls its unchanged base: a folder's whole path, or a hub id.

    RequestError where the base is not there, or lies where the adapter is to be written, or is not what the model was
    before its adapter.
    """
    folder = local_folder(base)
    if (folder / CONFIG).is_file():
        raise RequestError(f"{base} is an adapter itself, not the base of one.")
    if folder.resolve().is_relative_to(target.resolve()):
        raise RequestError(f"The base {base} would be replaced by its adapter.", hint="Save to another folder.")
    found = read_config(folder)
    if labels_of(found) != dims_of_model(model).labels:
        raise RequestError(
            f"{base} has another head than this {type(model).__name__}.",
            hint="Leave base out, and the base with its head is saved beside the adapter.",
        )
    before = [config for config in record(model) if config != on(model)]
    if record_in(folder, found) != before:
        raise RequestError(
            f"{base} is not the base of this model, which was changed since ({listed(c.method for c in before)}).",
            hint="Leave base out, and the changed base is saved beside the adapter.",
        )
    return str(folder.resolve()) if Path(base).expanduser().is_dir() else str(base)


def write(model: PreTrainedModel, config: MethodConfig, folder: Path, base: str | None) -> None:
    """Write the adapter in PEFT's layout. `base` names its base: a folder or a hub id; None: it lies in `base/`."""
    files = method_of(config).load().export(model, config)
    atomic.write_json(folder / CONFIG, {**files.config, "base_model_name_or_path": base or BASE})
    write_tensors(folder / WEIGHTS, files.tensors)
    if base:
        atomic.write_json(folder / OURS, {"base_fingerprint": fingerprint(local_folder(base))})


def _config(folder: Path) -> dict[str, Any]:
    found = atomic.read_json(folder / CONFIG)
    if not isinstance(found, dict):
        raise FileDamaged(f"{folder / CONFIG} holds {type(found).__name__}, not an object.")
    return found


def _method(peft_type: object) -> Method:
    """The method that reads PEFT's adapters of this type."""
    readers = {method.peft_type: method for method in methods([Part.TRANSFORM]) if method.peft_type}
    if peft_type not in readers:
        raise NotSupported(f"Adapters of peft_type {peft_type!r} are not read; those that are: {', '.join(readers)}.")
    return readers[str(peft_type)]


def check_base(folder: Path, base: Path) -> None:
    """RequestError where the adapter noted another base than the one found. Adapters of others note none."""
    if base != folder / BASE:
        _refuse_other(_noted_base(folder), base, f"the adapter in {folder}")


def _refuse_other(noted: str | None, base: Path, adapter: str) -> None:
    if noted is not None and fingerprint(base) != noted:
        raise RequestError(
            f"{base} is not the base that {adapter} was trained on: its weights differ.",
            hint="Give the same checkpoint, the same revision of it; or train the adapter again on this one.",
        )


def _noted_base(folder: Path) -> str | None:
    """The fingerprint of its base that the adapter in `folder` noted."""
    path = folder / OURS
    if not path.is_file():
        return None
    noted = atomic.read_json(path)
    found = noted.get("base_fingerprint") if isinstance(noted, dict) else None
    if not isinstance(found, str):
        raise FileDamaged(f"{path} has no base_fingerprint.", hint="Copy the adapter again.")
    return found
