"""How large adapters are, measured on a model and in its file, beside what is predicted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from parts.models import trained_folder
from parts.scratch import folder

from hayless.core.families import ledger_of
from hayless.core.measurement import Goal
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.model.adapters import WEIGHTS
from hayless.model.anatomy import dims_of_model
from hayless.model.build import build_model
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from hayless.study.bench.spec import Contender, Figure, Prepared

TRAINED, FILE, OFF = "trained parameters", "file", "off prediction"
_EXACT = Goal(op="<=", value=0)

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 4,
    "n_embd": 256,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": 1024,
}


def trained_base() -> Path:
    """The folder of the trained target."""
    return trained_folder("target")


@cache
def random_base() -> Path:
    """A folder with GPT-2's shape."""
    made = folder() / "gpt2"
    save_model(build_model(GPT2), made)
    return made


def contender(name: str, base: Callable[[], Path], config: MethodConfig) -> Contender:
    """An adapter on a base: what trains, the bytes of its file (or the model's), and how far predictions are off."""
    goals = {f"{metric}, {OFF}": _EXACT for metric in (TRAINED, FILE)}

    def prepare() -> Prepared:
        model = load_model(base(), dtype="float32")
        predicted = method_of(config).predict(ledger_of(dims_of_model(model)), config)
        apply(model, [config])
        trained = sum(item.numel() for item in model.parameters() if item.requires_grad)
        # What trains a part of the model has no file of its own.
        beside = bool(method_of(config).peft_type)
        file, kind = (WEIGHTS, "adapter") if beside else ("model.safetensors", "model")
        with tempfile.TemporaryDirectory() as made:
            save_model(model, Path(made) / "saved", base=base() if beside else None)
            size = (Path(made) / "saved" / file).stat().st_size
        figures = [
            Figure(TRAINED, "", trained),
            Figure(f"{TRAINED}, {OFF}", "", abs(trained - predicted.trainable)),
            Figure(FILE, "B", size),
            Figure(f"{FILE}, {OFF}", "B", abs(size - predicted.file_bytes()[kind])),
        ]
        return Prepared(lambda: None, lambda: {"done": [1.0]}, figures=lambda: figures)

    return Contender(name, prepare, goals=goals)
