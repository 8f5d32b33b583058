"""Saving models: one folder, written beside and renamed, with checksums; what comes back is the same to the bit.

Which kind of folder it is follows from what was done to the model. Where all tensors are ordinary it is an ordinary
Hugging Face folder, with the names that transformers itself writes. Where a method packed some it is a packed one (see
`hayless.model.packed`): in the layout of another library where that has one for all of them, else in ours, with the
names in memory. Where an adapter is on the model it is PEFT's folder, and the base
lies in `base/` in it unless it is named. Names, shapes and files are the ledger's, so they are what was predicted.
"""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core import atomic
from hayless.core.compose import predict
from hayless.core.errors import NotSupported, RequestError, WorkError, bad_value
from hayless.core.families import ledger_of
from hayless.core.files import SHARD_BYTES, TensorEntry, shards
from hayless.core.foreign import ecosystem_of
from hayless.core.ledger import Ledger, Row
from hayless.core.method import MethodConfig
from hayless.model import adapters, checksums
from hayless.model.anatomy import dims_of_model
from hayless.model.auto import MODEL_TYPE
from hayless.model.build import torch_dtype
from hayless.model.packing import PackedModule
from hayless.model.tensors import INDEX, WEIGHTS, listed, write_tensors
from hayless.model.transform import record


def save_model(
    model: PreTrainedModel,
    folder: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: str | Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Save `model` to `folder`, in the place of a model that is there; that one stays until the new one is whole.

    `base` names the folder or hub id of the unchanged base of an adapter, which is then not written. `dtype` is that of
    the floating weights in the files (as in memory if None; adapters are always in float32); the model in memory stays
    as it is. More than `shard_bytes` bytes of tensors are split over several files.

    RequestError for a model that would not come back as it is, and for a folder that holds something else than a model;
    WorkError when the disk does not take it.
    """
    target = Path(folder).expanduser().absolute()
    if dtype is not None:
        torch_dtype(dtype)
    if shard_bytes < 1:
        raise bad_value("shard_bytes", shard_bytes, allowed="at least 1 byte")
    _check_target(target)
    adapter = adapters.on(model)
    weights = _weights(model, dtype)
    if adapter is None and base is not None:
        raise RequestError(f"base = {str(base)!r} is for models with an adapter, and this one has none.")
    name = adapters.checked_base(model, base, target) if base is not None else None
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        # What a save that was killed had written.
        shutil.rmtree(left, ignore_errors=True)
    with atomic.folder(target) as partial:
        if adapter is None:
            _write_whole(model, weights, partial, dtype, shard_bytes)
        else:
            if name is None:
                _write_whole(model, weights, partial / adapters.BASE, dtype, shard_bytes)
            adapters.write(model, adapter, partial, name)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, partial)
        checksums.write(partial)


@dataclass(frozen=True, slots=True)
class _Weight:
    """One tensor of a file: what it is called and how large it is there, and its values in memory."""

    entry: TensorEntry
    tensor: Tensor


def _write_whole(
    model: PreTrainedModel, weights: Sequence[_Weight], folder: Path, dtype: str | None, shard_bytes: int
) -> None:
    """Config and weights, without an adapter."""
    folder.mkdir(exist_ok=True)
    atomic.write_json(folder / "config.json", _config(model, dtype))
    generation = getattr(model, "generation_config", None)
    if generation is not None and model.can_generate():
        # As text: saving it otherwise validates it, and published models have configs that do not pass.
        atomic.write_text(folder / "generation_config.json", generation.to_json_string())
    by_name = {weight.entry.name: weight for weight in weights}
    parts = shards((weight.entry for weight in weights), shard_bytes)
    where: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = WEIGHTS if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_tensors(folder / file, {entry.name: by_name[entry.name].tensor.to(_torch(entry.dtype)) for entry in part})
        where |= {entry.name: file for entry in part}
    if len(parts) > 1:
        total = sum(weight.entry.bytes for weight in weights)
        atomic.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _config(model: PreTrainedModel, dtype: str | None) -> dict[str, Any]:
    """The content of config.json."""
    found: dict[str, Any] = json.loads(model.config.to_json_string())
    found.pop("_name_or_path", None)
    noted = found.pop("hayless", None)
    found |= {"architectures": [type(model).__name__], "dtype": dtype or _name(model.dtype)}
    methods = [config.model_dump(mode="json") for config in _without_adapter(model)]
    if not methods:
        return found
    assert noted is not None
    noted = {**noted, "methods": methods}
    ledger = _ledger(model, dtype)
    if ledger.packed:
        return {"model_type": MODEL_TYPE, "hayless": noted, "base_config": found}
    if ledger.ecosystem:
        found["quantization_config"] = ecosystem_of(ledger.ecosystem).write(_without_adapter(model), ledger)
    return {**found, "hayless": noted}


def _weights(model: PreTrainedModel, dtype: str | None) -> list[_Weight]:
    """What the files hold of the model without its adapter. Raises where that is not all of it."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    ledger = _ledger(model, dtype)
    _check_complete(model, ledger, state)
    found: list[_Weight] = []
    for row in ledger.rows:
        if row.tied_to:
            continue
        for layer in row.layers or (0,):
            held = {stored.name.replace("{layer}", str(layer)): stored for stored in row.held}
            for name, stored in held.items():
                _check_tensor(name, state[name], stored.shape, stored.dtype if dtype is None else None)
            if ledger.ecosystem and row.ecosystem:
                found += _foreign_pieces(model, row, layer)
                continue
            for name, stored in held.items():
                tensor = state[name].detach()
                kept = stored.dtype if dtype is not None else _name(tensor.dtype)
                pieces = [(name, tensor)] if ledger.packed or not row.disk else _disk_pieces(row, layer, tensor)
                found += [_Weight(TensorEntry(piece, kept, tuple(part.shape)), part) for piece, part in pieces]
    return found


def _foreign_pieces(model: PreTrainedModel, row: Row, layer: int) -> Iterator[_Weight]:
    """A packed parameter as another library's files hold it."""
    module = model.get_submodule(row.module.replace("{layer}", str(layer)))
    assert isinstance(module, PackedModule)
    packing = module.packings[row.parameter]
    tensors = packing.to_disk(module.pieces(row.parameter), _torch(row.dtype))
    for piece, stored in zip(packing.form.disk(row.dtype), row.disk, strict=True):
        name = stored.name.replace("{layer}", str(layer))
        yield _Weight(TensorEntry(name, stored.dtype, stored.shape), tensors[piece.name])


def _disk_pieces(row: Row, layer: int, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A parameter as transformers names and splits it on disk: stacks of experts are taken apart."""
    parts = tensor.chunk(len(row.disk), dim=-2) if len(row.disk) > 1 else [tensor]
    for stored, part in zip(row.disk, parts, strict=True):
        name = stored.name.replace("{layer}", str(layer))
        if stored.experts:
            for expert, matrix in enumerate(part):
                yield name.replace("{expert}", str(expert)), matrix
        else:
            yield name, part


def _check_complete(model: PreTrainedModel, ledger: Ledger, state: dict[str, Tensor]) -> None:
    """Every tensor of the model must be one of the ledger's, or tied to one as the config says."""
    adapter = adapters.on(model)
    rows = (predict(ledger, [adapter]) if adapter else ledger).rows
    known: dict[int, str] = {}
    for row in rows:
        for layer in row.layers or (0,):
            for stored in row.held:
                name = stored.name.replace("{layer}", str(layer))
                if name not in state:
                    raise RequestError(
                        f"This {type(model).__name__} has no {name}, which its config and its record of methods say.",
                        hint="Was a module replaced or renamed?",
                    )
                first = known.setdefault(id(state[name]), name)
                if first != name and not row.tied_to:
                    raise RequestError(
                        f"{name} and {first} are one tensor, and the config says they are two.",
                        hint="Set tie_word_embeddings in the model's config to what the model is.",
                    )
    tied = {row.module: row.tied_to for row in rows if row.tied_to}
    for module, other in tied.items():
        if state[f"{module}.weight"] is not state[f"{other}.weight"]:
            raise RequestError(
                f"{module} and {other} are two tensors, and the config says they are one (tie_word_embeddings).",
                hint="Tie them (model.tie_weights()), or set tie_word_embeddings in the model's config to false.",
            )
    lost = [name for name, tensor in state.items() if id(tensor) not in known]
    if lost:
        raise NotSupported(
            f"{listed(lost)} of this {type(model).__name__} are neither its family's nor a known method's:"
            " they would be lost.",
            hint="Remove what was added to the model, or add it by a method.",
        )


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: str | None) -> None:
    if tensor.is_meta:
        raise RequestError(f"{name} has no values (it is on the meta device).", hint="Load the model's weights first.")
    if tuple(tensor.shape) != shape:
        raise RequestError(f"{name} is {tuple(tensor.shape)}, and the config says {shape}.")
    if dtype is not None and _name(tensor.dtype) != dtype:
        raise RequestError(
            f"{name} is in {_name(tensor.dtype)}, and would come back in {dtype}, like the model's other weights.",
            hint="Cast the model to one dtype, or save with dtype=…",
        )


def _check_target(folder: Path) -> None:
    """Refuse to replace what is not a saved model."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file.", hint="Give the folder that the model is to be saved in.")
    if not folder.name:
        raise RequestError(f"{folder} cannot be replaced.", hint="Give a folder of its own for the model.")
    marks = ("config.json", adapters.CONFIG)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).is_file() for mark in marks):
        raise RequestError(
            f"{folder} holds something else than a model, and would be replaced.", hint="Give another folder."
        )


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        # The tokenizers library raises bare Exceptions for a disk that is full.
        raise WorkError(f"The tokenizer could not be written: {error}.", hint="Free disk space.") from error


def _ledger(model: PreTrainedModel, dtype: str | None) -> Ledger:
    """The ledger of the model without its adapter."""
    dims = dims_of_model(model)
    return predict(ledger_of(dims.with_dtype(dtype) if dtype else dims), _without_adapter(model))


def _without_adapter(model: PreTrainedModel) -> list[MethodConfig]:
    adapter = adapters.on(model)
    return [config for config in record(model) if config != adapter]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _torch(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found
