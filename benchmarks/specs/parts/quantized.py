"""What packed weights cost a trained model in bits per byte, on modules of Python's library that it never saw.

The model is in float32, its weights are those of bf16: what is compared is what packing did, not how products round.
Text to calibrate on comes from packages of the library, text to measure from its top-level modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
import transformers
from parts.models import trained_folder
from torch import Tensor

from hayless.core.families import ledger_of
from hayless.core.measurement import Goal
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.data import stdlib
from hayless.data.order import shuffled
from hayless.measure.quality import Document, Quality, paired_difference, quality
from hayless.measure.weight_error import together, weight_errors
from hayless.model.anatomy import dims_of_model
from hayless.model.load import load_model
from hayless.model.transform import Context, apply
from hayless.study.bench.spec import Contender, Figure, Prepared

BITS, ADDED, ERROR, OUTPUT = "bits per byte", "bits per byte beyond bf16", "squared error of a weight", "output error"
SIZE, DIFFERENCE, LEAST, MOST = "bits a weight", "difference", "difference, low end", "difference, high end"
WHOLE = "bf16"
_LONGEST, _SHORTEST, _MODULES, _ROW, _ROWS = 512, 64, 3, 1024, 16

Peer = Callable[[transformers.PreTrainedModel], object]
"""Packs the linear layers of a model's blocks in place, as somebody else does."""
_NOT_WORSE = Goal(op="<=", value=0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What packing left: quality on the held-out documents, and the method's own figures."""

    quality: Quality
    figures: Mapping[str, float] = field(default_factory=dict)


def contender(name: str, config: MethodConfig, goals: Mapping[str, Goal] | None = None) -> Contender:
    """The trained target after a method."""
    return Contender(name, lambda: _shown(ours(config), config), goals=goals or {})


def peer(name: str, pack: Peer, package: str) -> Contender:
    """The trained target as a package packs it."""
    return Contender(name, lambda: _shown(theirs(pack)), needs=(package,))


def whole() -> Contender:
    """The trained target as it is."""
    return Contender(WHOLE, lambda: _measured(as_it_is(), lambda: [Figure(BITS, "bits/byte", _bits(as_it_is()))]))


def less(name: str, config: MethodConfig, pack: Peer, package: str) -> Contender:
    """By how many bits a byte a method is worse than a peer on the same documents, with the paired 95% interval.

    Worse beyond the noise: all of the interval lies above 0.
    """

    def prepare() -> Prepared:
        found = paired_difference(ours(config).quality, theirs(pack).quality)
        ends = ((DIFFERENCE, found.value), (LEAST, found.low), (MOST, found.high))
        return _measured(
            ours(config), lambda: [Figure(metric, "bits/byte", end) for metric, end in ends if end is not None]
        )

    return Contender(name, prepare, needs=(package,), goals={LEAST: _NOT_WORSE})


def layers(name: str, config: MethodConfig) -> Contender:
    """The relative error of each block's packed weights, and of all of them, by a method that needs no text."""

    def figures() -> list[Figure]:
        errors = weight_errors(_target(), [config])
        blocks = sorted({error.layer for error in errors if error.layer is not None})
        found = [
            Figure(f"layer {block}", "", together([error for error in errors if error.layer == block], "").relative)
            for block in blocks
        ]
        return [*found, Figure("all", "", together(errors, "").relative)]

    return Contender(name, lambda: _measured(as_it_is(), figures))


def layers_of_outputs(name: str, config: MethodConfig) -> Contender:
    """Of what each block's weights put out on calibration text, and of all, the share that a calibrated method lost,
    squared: the mean of the block's weights."""

    def prepare() -> Prepared:
        found = ours(config)
        of_blocks: dict[int, list[float]] = {}
        for path, lost in found.figures.items():
            if path.startswith("output_error/"):
                block = int(path.split(".layers.")[1].partition(".")[0])
                of_blocks.setdefault(block, []).append(lost)
        figures = [Figure(f"layer {block}", "", sum(lost) / len(lost)) for block, lost in sorted(of_blocks.items())]
        return _measured(found, lambda: [*figures, Figure("all", "", found.figures["output_error"])])

    return Contender(name, prepare)


@cache
def ours(config: MethodConfig) -> Outcome:
    """The target after a method."""
    model = _target()
    (change,) = apply(model, [config], Context(calibration=_calibration()))
    return Outcome(_quality(model), change.figures)


@cache
def theirs(pack: Peer) -> Outcome:
    """The target after a peer."""
    model = _target()
    pack(model)
    return Outcome(_quality(model))


@cache
def as_it_is() -> Outcome:
    """The target."""
    return Outcome(_quality(_target()))


def _shown(outcome: Outcome, config: MethodConfig | None = None) -> Prepared:
    bits = _bits(outcome)
    found = [Figure(BITS, "bits/byte", bits), Figure(ADDED, "bits/byte", bits - _bits(as_it_is()))]
    if config is not None:
        found.append(Figure(SIZE, "bits", _size(config)))
    for metric, name in ((ERROR, "mean_squared_error"), (OUTPUT, "output_error")):
        if name in outcome.figures:
            found.append(Figure(metric, "", outcome.figures[name]))
    return _measured(outcome, lambda: found)


def _measured(outcome: Outcome, figures: Callable[[], Sequence[Figure]]) -> Prepared:
    """Nothing is run but what the figures take; all are over the same documents."""
    return Prepared(lambda: None, lambda: {"bytes": [row.bytes for row in outcome.quality.documents]}, figures=figures)


def _size(config: MethodConfig) -> float:
    """Bits that a packed weight takes in memory beside others of bf16, scales and codebooks included."""
    ledger = ledger_of(dims_of_model(load_model(trained_folder("target"), dtype="bfloat16")))
    rows = [row for row in method_of(config).predict(ledger, config).rows if row.method == config.method]
    return 8 * sum(row.bytes for row in rows) / sum(row.elements for row in rows)


def _target() -> transformers.PreTrainedModel:
    return load_model(trained_folder("target"), dtype="float32")


def _quality(model: transformers.PreTrainedModel) -> Quality:
    return quality(model, _held_out(), begin=0, context=1024)


def _bits(outcome: Outcome) -> float:
    return outcome.quality.bits_per_byte.value


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
