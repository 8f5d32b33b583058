"""Modules that train whole beside an adapter, on a loaded model, and their tensors in PEFT's files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.methods.common.sites import PEFT_PREFIX, Target
from hayless.methods.common.weights import plain_ledger
from hayless.methods.common.whole import kept_name, whole_targets
from hayless.model.packing import PackedModule


def train_whole(model: PreTrainedModel, names: Sequence[str], method: str) -> None:
    """Let modules train, and keep what they were. NotSupported for packed ones."""
    for _, module, parameter in list(_parameters(model, names, method)):
        tensor = getattr(module, parameter)
        module.register_buffer(kept_name(parameter), tensor.detach().clone())
        tensor.requires_grad_(True)


def check_whole(model: PreTrainedModel, names: Sequence[str], method: str) -> None:
    """Refuse what `train_whole` would, before anything is changed."""
    for path, module, parameter in _parameters(model, names, method):
        if isinstance(module, PackedModule) and parameter in module.packings:
            raise NotSupported(
                f"{path} is packed, and codes do not train.", hint=f"Leave it out of {method}.whole, or do not pack it."
            )


def whole_tensors(model: PreTrainedModel, names: Sequence[str], method: str) -> dict[str, Tensor]:
    """The trained parameters, by the names that PEFT's files have for them."""
    return {
        f"{PEFT_PREFIX}{path}.{parameter}": getattr(module, parameter)
        for path, module, parameter in _parameters(model, names, method)
    }


def whole_names(model: PreTrainedModel, names: Sequence[str], method: str) -> list[str] | None:
    """PEFT's modules_to_save: ends of names where these mean exactly the modules, else paths; None without any."""
    paths = {path for path, *_ in _parameters(model, names, method)}
    short = {path.rpartition(".")[2] for path in paths}
    meant = {path for path, _ in model.named_modules() if path.endswith(tuple(short))} if short else set()
    return sorted(short if meant == paths else paths) or None


def take_back(model: PreTrainedModel, names: Sequence[str], method: str, *, keep: bool) -> None:
    """Forget what modules were (`keep` what they learnt), or make them that again."""
    for _, module, parameter in list(_parameters(model, names, method)):
        if not keep:
            getattr(module, parameter).data.copy_(getattr(module, kept_name(parameter)))
        delattr(module, kept_name(parameter))


def _parameters(model: PreTrainedModel, names: Sequence[str], method: str) -> Iterator[tuple[str, Any, str]]:
    chosen: list[Target] = whole_targets(plain_ledger(model), names, method) if names else []
    for target in chosen:
        for path in target.paths:
            yield path, model.get_submodule(path), target.row.parameter
