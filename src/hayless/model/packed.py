"""Folders of packed models, in this package's layout or in that of another library.

Ours: `model_type: "hayless"`, the true config under `base_config`, the methods under `hayless`; tensors have their
names in memory. Another library's: config.json is the model's own with `quantization_config` in it, as transformers has
it; the methods are our record, where there is one, or what that config comes to (`hayless.core.foreign`); tensors have
Hugging Face's names. Either way the structure is rebuilt from the config by each method's `restore`, in the order in
which the methods were applied, and then filled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from hayless.core.compose import predict
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.families import labels_of, ledger_of
from hayless.core.families.building import config_dtype
from hayless.core.foreign import record_in, without_layout
from hayless.core.ledger import Row
from hayless.core.registry import method_of
from hayless.model import build
from hayless.model.anatomy import dims_of_model
from hayless.model.build import Task
from hayless.model.checkpoint import HINT, Checkpoint
from hayless.model.packing import PackedModule
from hayless.model.tensors import listed, read_tensors, weight_files
from hayless.model.transform import as_record, record


def load(folder: Path, config: dict[str, Any], dtype: torch.dtype | None, task: Task) -> PreTrainedModel:
    """The model in `folder`, in this package's layout; `config` is the content of its config.json.

    Parameters are cast to `dtype` where one is given; what methods keep in buffers stays as it was stored.
    """
    base = config.get("base_config")
    if not isinstance(base, dict) or not isinstance(config.get("hayless"), dict):
        raise RequestError(f"{folder / 'config.json'} has no base_config or no record of methods (hayless).")
    model = _restored(folder, base, config["hayless"], dtype, task)
    _fill(model, folder, weight_files(folder), cast=dtype is not None)
    return model


def load_foreign(folder: Path, config: dict[str, Any], dtype: torch.dtype | None, task: Task) -> PreTrainedModel:
    """The model in `folder`, in the layout of another library. NotSupported for what cannot be honoured."""
    weight_files(folder)  # says what is wrong with the files before what they mean is asked
    methods = record_in(folder, config)
    model = _restored(folder, without_layout(config), as_record(methods), dtype, task)
    ledger = predict(ledger_of(dims_of_model(model)), methods)
    with Checkpoint(folder) as files, torch.no_grad():
        for row in ledger.rows:
            if not row.tied_to:
                for layer in row.layers or (0,):
                    _fill_row(model, row, layer, files, cast=dtype is not None)
        files.check_taken()
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


def _restored(
    folder: Path, base: dict[str, Any], noted: dict[str, Any], dtype: torch.dtype | None, task: Task
) -> PreTrainedModel:
    """The structure of a packed model, waiting for its values."""
    if task == "reward" and not labels_of(base):
        raise RequestError(
            f"{folder} is a language model whose weights are packed; it cannot be given a score head.",
            hint="Train the reward model first, then pack it.",
        )
    shape = build.read_config(base, task)
    shape.hayless = noted
    shape.name_or_path = str(folder)
    model = build.unfilled_model(shape, dtype or build.torch_dtype(config_dtype(base)))
    restore(model)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _fill_row(model: PreTrainedModel, row: Row, layer: int, files: Checkpoint, *, cast: bool) -> None:
    """One layer's tensors of a row, by Hugging Face's names."""
    path = row.module.replace("{layer}", str(layer))
    module: Any = model.get_submodule(path)
    if not row.ecosystem:
        _put(module, row.parameter, files.parameter(row, layer), f"{path}.{row.parameter}", files.folder, cast=cast)
        return
    assert isinstance(module, PackedModule)
    packing = module.packings[row.parameter]
    module.fill(row.parameter, packing.from_disk(files.packed(row, layer, packing.form), f"{path}.{row.parameter}"))


def _fill(model: PreTrainedModel, folder: Path, files: list[Path], *, cast: bool) -> None:
    """Put the files' tensors in the places of the model's, which all must be there once, and in their shapes.

    Parameters come in the dtypes of the model's if `cast`, else as they are stored.
    """
    wanted = _places(model)
    filled = set()
    for name, tensor in read_tensors(files):
        if name not in wanted:
            raise FileDamaged(f"{folder} has, beside the model's, {name}.", hint=HINT)
        if name in filled:
            raise FileDamaged(f"{folder} has {name} twice.", hint=HINT)
        _put(*wanted[name], tensor, name, folder, cast=cast)
        filled.add(name)
    missing = wanted.keys() - filled
    if missing:
        raise FileDamaged(f"{folder} lacks {listed(missing)}.", hint=HINT)


def _put(module: Any, leaf: str, tensor: Tensor, name: str, folder: Path, *, cast: bool) -> None:
    """Put a tensor in the place of a module's."""
    held = getattr(module, leaf)
    if held.shape != tensor.shape or held.is_floating_point() != tensor.is_floating_point():
        raise FileDamaged(
            f"{folder}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, and {tuple(held.shape)} of {held.dtype}"
            " is needed.",
            hint=HINT,
        )
    if isinstance(held, nn.Parameter):
        held.data = tensor.to(held.dtype) if cast else tensor
    else:
        module._buffers[leaf] = tensor


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
