"""Contenders of early exit: a model that LayerSkip trained, on modules of Python's library that its recipe held out.

Tokens are timed while the model makes them; what leaving costs is read on text: bits per byte of its next tokens, as
many behind a prompt as are timed, each read as decoding would have read it (by the plain path, whose tokens the
captured one gives). Half of the text finds the threshold, or the depth of a schedule; the other half judges it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
from hayless.methods.decoding.early_exit.calibrate import read_forced
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.part import EarlyExit
from hayless.methods.decoding.early_exit.predict import THRESHOLDS
from hayless.model.anatomy import dims_of_model
from hayless.study.bench.gate import Answer, Plain, Same
from hayless.study.bench.inputs import given
from hayless.study.bench.spec import Figure, Prepared

BITS = "bits per byte"
_WINDOWS, _PROMPT = 128, 64
_CHOSEN = 0.8
"""The share of the allowed rise that a threshold may take on the text that finds it; the rest is for other text."""


LEAVING, DRAFTING = "layerskip", "layerskip_drafts"
"""Inputs: the model whose tokens leave, and the one whose first layers draft."""


def folder(name: str) -> Path:
    """The folder of a trained model."""
    return given(name, "the model/ of a run of recipes/layerskip-target.yaml, or of another like it")


@cache
def trained(name: str, device: str) -> transformers.PreTrainedModel:
    """The model of an input, in float32 on a CPU and in bf16 on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return transformers.AutoModelForCausalLM.from_pretrained(folder(name), dtype=dtype).to(device).eval()


@cache
def _tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder(LEAVING))


@cache
def _texts() -> Tokens:
    """The tokens of modules whose names the recipe holds out."""
    share, library = DataConfig.model_fields["heldout"].default, stdlib.places().library
    files = [file for file in sorted(library.glob("*.py")) if position(f"lib/{file.name}") < share]
    return [_tokenizer()(file.read_text(encoding="utf-8"))["input_ids"] for file in files]


def prompts() -> Tokens:
    """The first tokens of four of them."""
    return [text[:_PROMPT] for text in _texts() if len(text) >= _PROMPT][:4]


@cache
def _windows(tokens: int, judging: bool) -> Tensor:
    """Every second window of the text (n, s), for finding a threshold or for judging it."""
    size = _PROMPT + tokens
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
            return {BITS: [self._bits(model, part, judging=True)]}

        def figures() -> Sequence[Figure]:
            found = [Figure(BITS, "bits/byte", self._bits(model, part, judging=True))]
            if part is not None:
                part.traces.clear()
                run(self.tokens)
                layers = list(itertools.chain.from_iterable(trace[1:] for trace in part.traces))
                found.append(Figure(f"mean layer of {part.layers}", "layers", sum(layers) / len(layers)))
            return found

        return Prepared(lambda: run(self.tokens), answer, lambda: run(1), figures)

    def _part(self, model: transformers.PreTrainedModel) -> EarlyExit:
        """The exits that leave earliest of those that keep to the rise on the text for finding them."""
        most = self._bits(model, None, judging=False) * (1 + _CHOSEN * self.rise)
        ways = self._ways(model)
        # Bits rise from one way to the next: the last that keeps to them, by halving.
        low, high = 0, len(ways)
        while high - low > 1:
            middle = (low + high) // 2
            kept = self._bits(model, ways[middle](), judging=False) <= most
            low, high = (middle, high) if kept else (low, middle)
        return ways[low]()

    def _ways(self, model: transformers.PreTrainedModel) -> Sequence[Callable[[], EarlyExit]]:
        """Exits by these options, from those of the fewest tokens on."""
        options = dict(self.options or ())
        if options["confidence"] == "schedule":
            depths = range(dims_of_model(model).num_layers - 1, 0, -1)
            return [partial(EarlyExit, EarlyExitConfig(**options, least=least), model) for least in depths]
        learns = options["confidence"] == "classifier" or options.get("heads") == "learnt"
        windows = _windows(self.tokens, judging=False) if learns else None

        def at(threshold: float) -> EarlyExit:
            config = EarlyExitConfig(**options, threshold=threshold, text="given" if learns else None)
            return EarlyExit(config, model, windows=windows)

        return [partial(at, threshold) for threshold in (1.0, *THRESHOLDS)]

    def _bits(self, model: transformers.PreTrainedModel, part: EarlyExit | None, *, judging: bool) -> float:
        """Bits per byte of the tokens behind those that were read in the windows."""
        windows = _windows(self.tokens, judging).to(trained_device())
        nats = torch.zeros((), dtype=torch.float64)
        with torch.inference_mode():
            read = read_forced(_reader(model, part), windows, _PROMPT)
            for logits, wanted in zip(read, windows[:, _PROMPT + 1 :].T, strict=False):
                nats -= logits.log_softmax(-1).gather(-1, wanted[:, None]).double().sum().cpu()
        size = sum(len(_tokenizer().decode(row[_PROMPT + 1 :]).encode()) for row in windows)
        return float(nats) / math.log(2) / size


def no_worse(rise: float) -> Same:
    """Bits per byte at most `rise` above the reference's."""

    def same(reference: Plain, other: Plain) -> str:
        whole, found = float(reference[BITS][0]), float(other[BITS][0])
        if not math.isfinite(found):
            return f"{BITS} is not finite"
        return "" if found <= whole * (1 + rise) else f"{BITS} is {found / whole - 1:.2%} higher; allowed: {rise:.0%}"

    return same


def _reader(model: transformers.PreTrainedModel, part: EarlyExit | None) -> Reader:
    found = plan(model)
    program = found if isinstance(found, Program) else None
    if part is not None:
        return part.reader(model, program)
    return ModuleReader(model) if program is None else ProgramReader(program)


def trained_device() -> str:
    """Where these benchmarks run."""
    return "cuda" if torch.cuda.is_available() else "cpu"
