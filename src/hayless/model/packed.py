"""Folders of packed models: `model_type: "hayless"`, the true config under `base_config`, the methods under `hayless`.

The names of their tensors are those in memory. The structure is rebuilt from the base's config by each method's
`restore`, in the order in which the methods were applied, and then filled by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from hayless.core.errors import FileDamaged, RequestError
from hayless.core.families import labels_of
from hayless.core.registry import method_of
from hayless.model import build
from hayless.model.build import Task
from hayless.model.tensors import listed, read_tensors, weight_files
from hayless.model.transform import record


def load(folder: Path, config: dict[str, Any], dtype: torch.dtype | None, task: Task) -> PreTrainedModel:
    """The model in `folder`; `config` is the content of its config.json.

    Parameters are cast to `dtype` where one is given; what methods keep in buffers stays as it was stored.
    """
    base = config.get("base_config")
    if not isinstance(base, dict) or not isinstance(config.get("hayless"), dict):
        raise RequestError(f"{folder / 'config.json'} has no base_config or no record of methods (hayless).")
    if task == "reward" and not labels_of(base):
        raise RequestError(
            f"{folder} is a language model whose weights are packed; it cannot be given a score head.",
            hint="Train the reward model first, then pack it.",
        )
    files = weight_files(folder)
    shape = build.read_config(base, task)
    shape.hayless = config["hayless"]
    shape.name_or_path = str(folder)
    model = build.unfilled_model(shape, dtype or build.torch_dtype(base.get("dtype") or "float32"))
    restore(model)
    _fill(model, folder, files, cast=dtype is not None)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def restore(model: PreTrainedModel) -> None:
    """Give `model` the structure that the methods on its record made, each on what was there when it was applied."""
    methods = record(model)
    if not methods:
        return
    noted: dict[str, Any] = model.config.hayless
    for position, method in enumerate(methods):
        model.config.hayless = {**noted, "methods": noted["methods"][:position]}
        with torch.no_grad():
            method_of(method).load().restore(model, method)
    model.config.hayless = noted


def _fill(model: PreTrainedModel, folder: Path, files: list[Path], *, cast: bool) -> None:
    """Put the files' tensors in the places of the model's, which all must be there once, and in their shapes.

    Parameters come in the dtypes of the model's if `cast`, else as they are stored.
    """
    wanted = _places(model)
    filled = set()
    for name, tensor in read_tensors(files):
        if name not in wanted:
            raise FileDamaged(f"{folder} has, beside the model's, {name}.", hint=_HINT)
        if name in filled:
            raise FileDamaged(f"{folder} has {name} twice.", hint=_HINT)
        module, leaf = wanted[name]
        held = getattr(module, leaf)
        if held.shape != tensor.shape or held.is_floating_point() != tensor.is_floating_point():
            raise FileDamaged(
                f"{folder}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, and {tuple(held.shape)} of {held.dtype}"
                " is needed.",
                hint=_HINT,
            )
        if isinstance(held, nn.Parameter):
            held.data = tensor.to(held.dtype) if cast else tensor
        else:
            module._buffers[leaf] = tensor
        filled.add(name)
    missing = wanted.keys() - filled
    if missing:
        raise FileDamaged(f"{folder} lacks {listed(missing)}.", hint=_HINT)


_HINT = "config.json and weights must belong to one model; copy the folder again."


def _places(model: PreTrainedModel) -> dict[str, tuple[Any, str]]:
    """Name in files → (module, name within it) of what a file must hold: tied tensors once, by their first name."""
    saved = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    places = {}
    for name, tensor in saved.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        path, _, leaf = name.rpartition(".")
        places[name] = (model.get_submodule(path), leaf)
    return places
