"""What adapters share on a loaded model: freezing it around them, thawing it after them, and PEFT's names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.compose import predict
from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.core.roles import Role
from hayless.methods.common.sites import PEFT_PREFIX, Target, another
from hayless.methods.common.weights import plain_ledger, weights_of
from hayless.model import adapters
from hayless.model.adapters import Adapter
from hayless.model.transform import Change, record

_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def freeze(model: PreTrainedModel, method: str) -> None:
    """Nothing of the model trains. NotSupported for a head that the family does not have (a reward model's), which
    would be frozen as random as it is."""
    known = {
        f"{row.module}.{row.parameter}".replace("{layer}", str(layer))
        for row in plain_ledger(model).rows
        for layer in row.layers or (0,)
    }
    new = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in known]
    if new:
        raise NotSupported(
            f"{method} would freeze {', '.join(new)} of this {type(model).__name__}, which must be trained whole.",
            hint=f"Train it without {method}.",
        )
    model.requires_grad_(False)


def thaw(model: PreTrainedModel, config: MethodConfig) -> None:
    """What trains without the adapter `config` trains again: everything that is not packed."""
    ledger = predict(plain_ledger(model), [other for other in record(model) if other != config])
    for weight in weights_of(model, [row for row in ledger.rows if row.trainable]):
        weight.parameter.requires_grad_(True)


def refuse_marked(model: PreTrainedModel, method: str, marks: Sequence[str]) -> None:
    """RequestError where a module has one of the attributes by which an adapter is known, or the record says so."""
    marked = any(hasattr(module, mark) for module in model.modules() for mark in marks)
    if marked or any(method_of(config).peft_type for config in record(model)):
        raise another(method)


def put_on(model: PreTrainedModel, method: str, adapter: Adapter, figures: Mapping[str, float]) -> Change:
    """Put an adapter on a model for a method that made it of others, and leave it on the record in the method's place.

    Figures: how many parameters are trained, and those given.
    """
    places = {path for path, _ in model.named_modules()}
    part = method_of(adapter.config).load()
    part.restore(model, adapter.config)
    part.load(model, adapter.config, adapter.tensors)
    paths = sorted({_within(places, name.removeprefix(PEFT_PREFIX)) for name in adapter.tensors})
    return Change(method, tuple(paths), figures={**trained(model), **figures}, leaves=(adapter.config,))


def trained(model: PreTrainedModel) -> dict[str, float]:
    """The figure of an adapter: how many parameters are trained."""
    return {"trainable": float(sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad))}


def read_modules(model: PreTrainedModel, folders: Sequence[Path]) -> list[Adapter]:
    """The adapters in these folders, of which all have what they should for a base such as `model`.

    RequestError where those that note their base note different ones, or another than the model's folder; FileDamaged
    for tensors that are missing, unexpected or misshapen.
    """
    _check_same_base(folders, model)
    found = [adapters.read(folder) for folder in folders]
    ledger = plain_ledger(model)
    for module in found:
        wanted = {
            stored.name.replace("{layer}", str(layer)): stored.shape
            for row in method_of(module.config).predict(ledger, module.config).rows
            if row.role is Role.ADAPTER
            for stored in row.disk
            for layer in row.layers or (0,)
        }
        check_tensors(wanted, module.tensors)
    return found


def _check_same_base(folders: Sequence[Path], model: PreTrainedModel) -> None:
    noted: dict[str, Path] = {}
    for folder in folders:
        path = folder / adapters.OURS
        if path.is_file():
            noted.setdefault(str(atomic.read_json(path).get("base_fingerprint")), folder)
    if len(noted) > 1:
        one, other = list(noted.values())[:2]
        raise RequestError(
            f"{one} and {other} were trained on different bases, and do not compose.",
            hint="Train one of them again on the other's base.",
        )
    base = Path(model.config.name_or_path or "")
    if noted and (base / "config.json").is_file():
        adapters.check_base(next(iter(noted.values())), base)


def modules_of(model: PreTrainedModel, targets: Iterable[Target]) -> Iterator[tuple[str, Any, Target]]:
    """Each target's path, module and row."""
    for target in targets:
        for path in target.paths:
            yield path, model.get_submodule(path), target


def fill(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter's tensors into the model's. FileDamaged for missing, unexpected or misshapen ones."""
    check_tensors({name: tuple(weight.shape) for name, weight in wanted.items()}, tensors)
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(tensors[name])


def check_tensors(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """FileDamaged for tensors that are missing, unexpected, or of another shape than wanted."""
    for what, names in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if names:
            raise FileDamaged(
                f"The adapter {what} tensors, {len(names)} in all, such as {min(names)}.",
                hint="Is it an adapter of this model?",
            )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise FileDamaged(f"{name} is {tuple(tensors[name].shape)}, but {shape} is needed.")


def _within(places: Set[str], name: str) -> str:
    """The module among `places` that a tensor of this name lies in."""
    while name not in places:
        name = name.rpartition(".")[0]
    return name


def peft_task(model: PreTrainedModel) -> str | None:
    """PEFT's name of what the model does, where it has one."""
    return next((task for end, task in _TASKS.items() if type(model).__name__.endswith(end)), None)


def peft_base(model: PreTrainedModel, kind: str) -> dict[str, Any]:
    """How an adapter_config.json begins: its `peft_type`, and the model that it is for."""
    return {
        "peft_type": kind,
        "task_type": peft_task(model),
        "base_model_name_or_path": model.config.name_or_path or "",
        "inference_mode": True,
    }


def peft_names(model: PreTrainedModel, paths: Sequence[str]) -> list[str]:
    """The short names of modules where these mean exactly `paths`, else the paths."""
    short = {path.rpartition(".")[2] for path in paths}
    meant = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in short}
    return sorted(short if meant == set(paths) else paths)
