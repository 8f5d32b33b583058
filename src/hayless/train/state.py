"""How far a run is, and putting all of it into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import MethodConfig
from hayless.train import randomness
from hayless.train.checkpoint import Snapshot
from hayless.train.settings import RESUMABLE, TrainSettings
from hayless.train.updater import Updater

_FORMAT = 1


@dataclass
class RunState:
    """Counts and losses so far. Losses are nats a unit; `seconds` are of all parts of the run together."""

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0


def setup_of(settings: TrainSettings, objective: MethodConfig, optimizer: MethodConfig) -> dict[str, Any]:
    """What must be the same for a run to be resumed, flat and as JSON."""
    chosen = {name: value for name, value in settings.model_dump(mode="json").items() if name in _fixed()}
    methods = {"objective": objective.model_dump(mode="json"), "optimizer": optimizer.model_dump(mode="json")}
    return {**chosen, **methods}


def snapshot(
    state: RunState, setup: Mapping[str, Any], updater: Updater, buffers: Mapping[str, Tensor], device: torch.device
) -> Snapshot:
    """Everything that decides how the run goes on. Frozen weights are left out: nothing changes them."""
    moments, numbers = updater.optimizer_state()
    random, generators = randomness.capture(device)
    tensors = {"weights": updater.weights(), "buffers": buffers, "optimizer": moments, "random": random}
    plain = {
        "format": _FORMAT,
        "run": asdict(state),
        "setup": dict(setup),
        "optimizer": numbers,
        "random": generators,
    }
    return Snapshot(tensors, plain)


def restore(found: Snapshot, setup: Mapping[str, Any], updater: Updater, model: nn.Module) -> RunState:
    """Put a snapshot back. RequestError names the setting that differs; NotSupported for another version's format."""
    if found.state.get("format") != _FORMAT:
        raise NotSupported(
            f"The checkpoint has format {found.state.get('format')!r}; this version reads {_FORMAT}.",
            hint="Resume with the version that wrote it, or start over.",
        )
    before = found.state["setup"]
    for name in sorted(before.keys() | setup.keys()):
        if before.get(name) != setup.get(name):
            raise RequestError(
                f"The checkpoint was made with {name} = {before.get(name)!r}, not {setup.get(name)!r}.",
                hint="Resume with the same settings, or train in another folder.",
            )
    restore_weights(found, updater, model)
    updater.load_optimizer_state(found.tensors["optimizer"], found.state["optimizer"])
    randomness.restore(updater.device, found.tensors["random"], found.state["random"])
    return RunState(**found.state["run"])


def restore_weights(found: Snapshot, updater: Updater, model: nn.Module) -> None:
    """Put back the trained weights and changed buffers only."""
    updater.load_weights(found.tensors["weights"])
    for name, tensor in found.tensors["buffers"].items():
        owner, _, buffer = name.rpartition(".")
        setattr(model.get_submodule(owner), buffer, tensor.to(updater.device))


class Buffers:
    """Knows which buffers of a model changed since it was made, without a copy: by identity and torch's counters."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: _mark(buffer) for name, buffer in model.named_buffers()}

    def changed(self) -> dict[str, Tensor]:
        """Buffers that were written to, replaced or added."""
        return {name: buffer for name, buffer in self._model.named_buffers() if self._before.get(name) != _mark(buffer)}


def _mark(buffer: Tensor) -> tuple[int, int]:
    # A tensor made in inference mode has no counter, and cannot be written to outside of it.
    return id(buffer), -1 if buffer.is_inference() else buffer._version


def _fixed() -> set[str]:
    return set(TrainSettings.model_fields) - RESUMABLE
