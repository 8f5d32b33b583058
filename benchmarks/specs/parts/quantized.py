"""What packed weights cost a trained model in bits per byte, on modules of Python's library that it never saw.

The model is in float32, its weights are those of bf16: what is compared is what packing did, not how products round.
Text to calibrate on comes from packages of the library, text to measure from its top-level modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import transformers
from parts.models import trained_folder
from torch import Tensor

from hayless.core.measurement import Goal
from hayless.core.method import MethodConfig
from hayless.data import stdlib
from hayless.data.order import shuffled
from hayless.measure.quality import Document, quality
from hayless.model.load import load_model
from hayless.model.transform import Context, apply
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Contender, Figure, Prepared

BITS, ADDED, ERROR, OUTPUT = "bits per byte", "bits per byte beyond bf16", "squared error of a weight", "output error"
WHOLE = "bf16"
_LONGEST, _SHORTEST, _MODULES, _ROW, _ROWS = 512, 64, 3, 1024, 16


def contender(name: str, config: MethodConfig, goals: Mapping[str, Goal] | None = None) -> Contender:
    """The trained target after a method."""
    return Contender(name, lambda: _packed(config), goals=goals or {})


def whole() -> Contender:
    """The trained target as it is."""
    return Contender(WHOLE, lambda: _measured(lambda: [Figure(BITS, "bits/byte", _bits_of_whole())]))


def _packed(config: MethodConfig) -> Prepared:
    model = _target()
    (change,) = apply(model, [config], Context(calibration=_calibration()))

    def figures() -> Sequence[Figure]:
        bits = _bits(model)
        found = [Figure(BITS, "bits/byte", bits), Figure(ADDED, "bits/byte", bits - _bits_of_whole())]
        found.append(Figure(ERROR, "", change.figures["mean_squared_error"]))
        output = change.figures.get("output_error")
        return found if output is None else [*found, Figure(OUTPUT, "", output)]

    return _measured(figures)


def _measured(figures: Callable[[], Sequence[Figure]]) -> Prepared:
    """Nothing is run but what the figures take; all are over the same documents."""

    def answer() -> Answer:
        return {"bytes": [document.bytes for document in _held_out()]}

    return Prepared(lambda: None, answer, figures=figures)


def _target() -> transformers.PreTrainedModel:
    return load_model(trained_folder("target"), dtype="float32")


def _bits(model: transformers.PreTrainedModel) -> float:
    return quality(model, _held_out(), begin=0, context=1024).bits_per_byte.value


@cache
def _bits_of_whole() -> float:
    return _bits(_target())


@cache
def _tokenizer() -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(trained_folder("target"))


@cache
def _held_out() -> list[Document]:
    """The first tokens of every third top-level module that is plain ASCII: any cut is between characters there."""
    found = []
    for path in sorted(stdlib.places().library.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        tokens = _tokenizer()(text)["input_ids"][:_LONGEST] if text.isascii() else []
        if len(tokens) >= _SHORTEST:
            found.append(Document(path.name, torch.tensor(tokens), len(_tokenizer().decode(tokens).encode())))
    return found[::_MODULES]


@cache
def _calibration() -> list[Tensor]:
    """16 rows of 1,024 tokens: modules of packages in a fixed order, end to end, each behind the end token."""
    library = stdlib.places().library
    paths = sorted(path for path in library.glob("*/*.py") if path.parent.name in _PACKAGES)
    tokens: list[int] = []
    for place in range(len(paths)):
        text = paths[shuffled(place, len(paths), 0)].read_text(encoding="utf-8", errors="replace")
        tokens += [0, *_tokenizer()(text)["input_ids"]]
        if len(tokens) >= _ROWS * _ROW:
            break
    return list(torch.tensor(tokens[: _ROWS * _ROW]).view(_ROWS, _ROW).split(4))


_PACKAGES = frozenset(
    {"asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging"}
    | {"multiprocessing", "sqlite3", "tkinter", "unittest", "urllib", "wsgiref", "xml"}
)
