"""The part of a method that changes a model, and the one function that applies such parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.compose import compose
from hayless.core.method import MethodConfig
from hayless.core.progress import Progress, no_progress
from hayless.core.registry import method_of, record_of

if TYPE_CHECKING:
    from hayless.model.merging import PackedBase


@dataclass(frozen=True, slots=True)
class Context:
    """What a transform may use besides the model: token batches (B, S) to calibrate on, a tokenizer, a seed, a progress
    callable, and a folder of its own to keep what is finished, so that work goes on there after it was stopped.
    """

    seed: int = 0
    calibration: Sequence[Tensor] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    folder: Path | None = None
    progress: Progress = no_progress


@dataclass(frozen=True, slots=True)
class Change:
    """What a transform did: module paths it changed, paths it left out and why, and figures about it.

    `leaves`: what goes on the model's record in its place, where the model is then as if others had been applied.
    """

    method: str
    changed: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    leaves: tuple[MethodConfig, ...] | None = None


class Transform(Protocol):
    """Changes a model in place, and can rebuild the structure of the change on an empty model without any data."""

    def apply(self, model: PreTrainedModel, config: Any, context: Context) -> Change:
        """Change `model` in place. Raises before touching anything when it cannot do all of it."""
        ...

    def restore(self, model: PreTrainedModel, config: Any) -> None:
        """Give `model` the modules and tensor shapes `apply` would; values are loaded by the caller afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The content of a PEFT folder."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


class AdapterTransform(Transform, Protocol):
    """A transform whose trained part is saved as a PEFT adapter."""

    def export(self, model: PreTrainedModel, config: Any) -> AdapterFiles:
        """The adapter as PEFT writes it."""
        ...

    def read(self, adapter_config: dict[str, Any]) -> MethodConfig:
        """Our config for PEFT's; NotSupported names each field that would change the result and is not honoured."""
        ...

    def load(self, model: PreTrainedModel, config: Any, tensors: dict[str, Tensor]) -> None:
        """Fill the branches from PEFT's tensors; missing, unexpected or misshapen ones are errors."""
        ...

    def remove(self, model: PreTrainedModel, config: Any) -> None:
        """Take the branches off; the base is as it was before them."""
        ...

    def merge(self, model: PreTrainedModel, config: Any, base: PackedBase | None = None) -> Change:
        """Add the branches into the base weights and remove them; `base` opens packed ones, None refuses them."""
        ...


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one linear module: scale · B(A x), A (r, in) and B (out, r)."""

    a: Tensor
    b: Tensor
    scale: float


@runtime_checkable
class LowRankTransform(Protocol):
    """A transform whose adapters may be nothing but low-rank sums, in which rows of a batch can differ."""

    def low_rank(self, model: PreTrainedModel, config: Any, tensors: dict[str, Tensor]) -> dict[str, LowRank]:
        """What is added to each module, by path; `model` is the base and stays as it is.

        NotSupported for an adapter that does more, FileDamaged for missing, unexpected or misshapen tensors.
        """
        ...


def apply(model: PreTrainedModel, configs: Iterable[MethodConfig], context: Context | None = None) -> list[Change]:
    """Apply transforms to `model` in place, in the order `compose` gives, and record them on it.

    Raises RequestError before anything is changed when two of them (or one of them and what the model already has)
    exclude each other.
    """
    context = context or Context()
    wanted = list(configs)
    ordered = compose(wanted)
    before = record(model)
    compose([*before, *wanted])
    changes = []
    for config in ordered:
        with torch.no_grad():
            change = method_of(config).load().apply(model, config, context)
        changes.append(change)
        for left in (config,) if change.leaves is None else change.leaves:
            note(model, left)
    return changes


def record(model: PreTrainedModel) -> list[MethodConfig]:
    """The transforms a model has had, in order, from its config."""
    return record_of(getattr(model.config, "hayless", None))


def note(model: PreTrainedModel, config: MethodConfig) -> None:
    """Append a transform to the record, after it was done."""
    _set_record(model, [*record(model), config])


def forget(model: PreTrainedModel, config: MethodConfig) -> None:
    """Take a transform off the record, after it was undone or merged."""
    _set_record(model, [entry for entry in record(model) if entry != config])


def as_record(configs: Sequence[MethodConfig]) -> dict[str, Any]:
    """What a model's config has under `hayless`."""
    from hayless.version import __version__

    return {"version": __version__, "methods": [config.model_dump(mode="json") for config in configs]}


def _set_record(model: PreTrainedModel, configs: Sequence[MethodConfig]) -> None:
    if configs:
        model.config.hayless = as_record(configs)
    elif hasattr(model.config, "hayless"):
        del model.config.hayless
