"""Contenders of early exit: a model that LayerSkip trained, on modules of Python's library that its recipe held out.

Tokens are timed while the model makes them; what leaving costs is read on text: bits per byte of its next tokens, each
read as decoding would have read it. Half of the text finds the threshold, the other half judges it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from parts.decoding import Tokens
from torch import Tensor

from hayless.data import stdlib
from hayless.data.config import DataConfig
from hayless.data.split import position
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, plan
from hayless.decode.readers import ModuleReader, ProgramReader, Reader
from hayless.methods.decoding.early_exit.calibrate import PROMPT, TOKENS, read_forced
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.part import EarlyExit
from hayless.methods.decoding.early_exit.predict import THRESHOLDS
from hayless.study.bench.gate import Answer, Plain, Same
from hayless.study.bench.inputs import given
from hayless.study.bench.spec import Figure, Prepared

BITS = "bits per byte"
_WINDOWS = 128
_CHOSEN = 0.8
"""The share of the allowed rise that a threshold may take on the text that finds it; the rest is for other text."""


def folder() -> Path:
    """The folder of the trained model."""
    return given("layerskip", "the model/ of a run of recipes/layerskip.yaml, or of a larger one on the same data")


@cache
def trained(device: str) -> transformers.PreTrainedModel:
    """The model, in float32 on a CPU and in bf16 on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return transformers.AutoModelForCausalLM.from_pretrained(folder(), dtype=dtype).to(device).eval()


@cache
def _tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder())


@cache
def _texts() -> Tokens:
    """The tokens of modules whose names the recipe holds out."""
    share, library = DataConfig.model_fields["heldout"].default, stdlib.places().library
    files = [file for file in sorted(library.glob("*.py")) if position(f"lib/{file.name}") < share]
    return [_tokenizer()(file.read_text(encoding="utf-8"))["input_ids"] for file in files]


def prompts() -> Tokens:
    """The first tokens of four of them."""
    return [text[:64] for text in _texts() if len(text) >= 64][:4]


@cache
def _windows(judging: bool) -> Tensor:
    """Every second window of the text (n, s), for finding a threshold or for judging it."""
    size = PROMPT + TOKENS
    found = [text[at : at + size] for text in _texts() for at in range(0, len(text) - size + 1, size)]
    return torch.tensor(found[int(judging) :: 2][:_WINDOWS])


@dataclass(frozen=True)
class Leaving:
    """`tokens` tokens after each prompt by a model, with exits by `options` of the method, or with all layers (None).

    The threshold is the smallest whose bits per byte rise by at most `rise` on the text that finds it, with a margin.
    """

    model: Callable[[], transformers.PreTrainedModel]
    tokens: int
    rise: float
    options: tuple[tuple[str, Any], ...] | None = None

    def prepared(self) -> Prepared:
        """The engine."""
        model = self.model()
        part = None if self.options is None else self._part(model)
        engine = Engine(model, exit=part)

        def run(count: int) -> None:
            engine.generate(prompts(), SamplingOptions(max_tokens=count, ignore_end=True), batch_size=1)

        def answer() -> Answer:
            return {BITS: [_bits(_reader(model, part), judging=True)]}

        def figures() -> Sequence[Figure]:
            found = [Figure(BITS, "bits/byte", _bits(_reader(model, part), judging=True))]
            if part is not None:
                part.traces.clear()
                run(self.tokens)
                layers = list(itertools.chain.from_iterable(trace[1:] for trace in part.traces))
                found.append(Figure(f"mean layer of {part.layers}", "layers", sum(layers) / len(layers)))
            return found

        return Prepared(lambda: run(self.tokens), answer, lambda: run(1), figures)

    def _part(self, model: transformers.PreTrainedModel) -> EarlyExit:
        options = dict(self.options or ())
        if options["confidence"] == "schedule":
            return EarlyExit(EarlyExitConfig(**options), model)
        most = _bits(_reader(model, None), judging=False) * (1 + _CHOSEN * self.rise)
        found = _exits(model, options, 1.0)
        for part in (_exits(model, options, threshold) for threshold in THRESHOLDS):
            if _bits(_reader(model, part), judging=False) > most:
                break
            found = part
        return found


def no_worse(rise: float) -> Same:
    """Bits per byte at most `rise` above the reference's."""

    def same(reference: Plain, other: Plain) -> str:
        whole, found = float(reference[BITS][0]), float(other[BITS][0])
        if not math.isfinite(found):
            return f"{BITS} is not finite"
        return "" if found <= whole * (1 + rise) else f"{BITS} is {found / whole - 1:.2%} higher; allowed: {rise:.0%}"

    return same


def _exits(model: transformers.PreTrainedModel, options: dict[str, Any], threshold: float) -> EarlyExit:
    learns = options["confidence"] == "classifier" or options.get("heads") == "learnt"
    config = EarlyExitConfig(**options, threshold=threshold, text="given" if learns else None)
    return EarlyExit(config, model, windows=_windows(judging=False) if learns else None)


def _reader(model: transformers.PreTrainedModel, part: EarlyExit | None) -> Callable[[], Reader]:
    found = plan(model)
    program = found if isinstance(found, Program) else None
    if part is not None:
        return lambda: part.reader(model, program)
    return lambda: ModuleReader(model) if program is None else ProgramReader(program)


def _bits(reader: Callable[[], Reader], *, judging: bool) -> float:
    """Bits per byte of the tokens behind those that were read in the windows."""
    windows = _windows(judging).to(trained_device())
    nats = torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        for chunk in windows.split(64):
            for logits, wanted in zip(read_forced(reader(), chunk), _following(chunk), strict=False):
                nats -= logits.log_softmax(-1).gather(-1, wanted[:, None]).double().sum().cpu()
    size = sum(len(_tokenizer().decode(row[PROMPT + 1 :]).encode()) for row in windows)
    return float(nats) / math.log(2) / size


def _following(chunk: Tensor) -> Iterator[Tensor]:
    for place in range(PROMPT + 1, chunk.shape[1]):
        yield chunk[:, place]


def trained_device() -> str:
    """Where these benchmarks run."""
    return "cuda" if torch.cuda.is_available() else "cpu"
