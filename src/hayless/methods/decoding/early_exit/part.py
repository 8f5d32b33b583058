"""Fills the exit slot: where tokens leave, after what was learnt from text where that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import NotSupported, RequestError
from hayless.data.documents import find_files, read_text
from hayless.decode.eager import EagerBatch
from hayless.decode.program import Program
from hayless.decode.readers import ModuleReader, ProgramReader
from hayless.decode.request import Batch, Chosen, Request
from hayless.decode.slots import Target
from hayless.methods.decoding.early_exit.calibrate import Calibration, calibrate, classifier_from, sample, windows_of
from hayless.methods.decoding.early_exit.confidence import (
    ByClassifier,
    BySoftmax,
    ByState,
    Classifier,
    Confidence,
    Tail,
)
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.heads import Heads, learn_heads, shared
from hayless.methods.decoding.early_exit.leaving import Confident, OnSchedule
from hayless.methods.decoding.early_exit.predict import exits, scheduled_layers
from hayless.methods.decoding.early_exit.readers import ModuleTail, ProgramTail, WatchedReader, reader
from hayless.model.anatomy import dims_of_model

if TYPE_CHECKING:
    from hayless.methods.decoding.early_exit.captured import ExitGraphs


class EarlyExit:
    """Early exit for one model.

    `windows` (n, s) are token ids to learn from; those of `config.text` if not given. `traces` has the layers that each
    token of each text went through, texts in the order in which they were asked for; a text's first token comes from
    its prompt, which goes through all. `say` is told what was found. RequestError for a text that is too short.
    """

    def __init__(
        self,
        config: EarlyExitConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        windows: Tensor | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.config = config
        self.layers = dims_of_model(model).num_layers
        self.exits = exits(config, self.layers)
        self.traces: list[list[int]] = []
        self.calibration: Calibration | None = None
        self._counts: Counter[int] = Counter()
        self._classifier: Classifier | None = None
        self._heads: Heads = shared
        self._say = say
        self._windows = windows
        self._open_traces: dict[Request, list[int]] = {}
        self._graphs: ExitGraphs | None = None
        if config.needs_text and windows is None:
            self._windows = windows_of(_tokens_of(str(config.text), tokenizer), _wanted(config))

    def prepare(self, target: Target, requests: Sequence[Request]) -> None:
        """Learn what is to be learnt, the first time."""
        self._learn(target.model, target.program)

    def begin(self, target: Target, requests: Sequence[Request]) -> Batch:
        """A batch of these requests."""
        traces: dict[Request, list[int]] = {request: [] for request in requests}
        self.traces += traces.values()
        self._open_traces = traces
        if target.graphs and target.program is not None:
            return self._captured(target.model, target.program).begin(requests)
        return _Batch(self.reader(target.model, target.program), requests, self.layers, self._note)

    def open(self, target: Target, rows: int, tokens: int) -> Batch:
        """A batch that requests join later; of these no traces are kept. NotSupported for a schedule."""
        if self.config.confidence == "schedule":
            raise NotSupported(
                "Requests cannot join a batch whose rows leave together, by the number of tokens made.",
                hint="Use generate or stream, or another confidence.",
            )
        if target.graphs and target.program is not None:
            return self._captured(target.model, target.program).open(rows, tokens)
        return _Batch(self.reader(target.model, target.program), [], self.layers, self._note)

    def no_graphs(self, program: Program) -> str | None:
        """Why its tokens cannot leave in captured graphs, or None."""
        if self.config.confidence == "schedule":
            return None
        if not program.plain:
            return "exits by confidence have no kernels for packed weights, nor for branches beside them"
        if program.device.type != "cuda":
            return None
        from hayless.kernels.branches import no_branches

        return no_branches(program.device)

    def reader(self, model: PreTrainedModel, program: Program | None) -> WatchedReader:
        """A reader whose tokens leave as those that are made do; what is to be learnt is learnt before."""
        self._learn(model, program)
        if self.config.confidence == "schedule":
            at = partial(scheduled_layers, self.config, self.layers)
            return reader(model, program, OnSchedule(at, self.layers, self._heads))
        return self._confident(model, program, self.threshold)

    @property
    def threshold(self) -> float:
        """The confidence that is enough."""
        return self.config.threshold if self.calibration is None else self.calibration.threshold

    @property
    def mean_layer(self) -> float | None:
        """Layers that a token went through, those of prompts' passes included; None where there was none."""
        return sum(layer * count for layer, count in self._counts.items()) / max(1, self._counts.total()) or None

    def document(self) -> dict[str, Any]:
        """What was asked for, found and counted."""
        scheduled = self.config.confidence == "schedule"
        return {
            "confidence": self.config.confidence,
            "threshold": None if scheduled else self.threshold,
            "calibration": asdict(self.calibration) if self.calibration else None,
            "model_layers": self.layers,
            "mean_layer": self.mean_layer,
            "layers": self.traces,
        }

    def __str__(self) -> str:
        how = (
            "by schedule"
            if self.config.confidence == "schedule"
            else f"{self.config.confidence} ≥ {self.threshold:.4g}"
        )
        mean = self.mean_layer
        return f"{how}: not used" if mean is None else f"{how}: {mean:.2f} of {self.layers} layers a token"

    def _learn(self, model: PreTrainedModel, program: Program | None) -> None:
        """What is fitted, then the threshold, from other windows: its bound holds for what is given beforehand."""
        windows, config = self._windows, self.config
        if windows is None:
            return
        windows = windows.to(model.device)
        if config.fits:
            half = len(windows) // 2 if config.risk is not None else len(windows)
            samples = sample(model, self.exits, windows[:half])
            windows = windows[half:]
            if config.heads == "learnt":
                self._heads = learn_heads(samples.states, samples.last_nh)
            if config.confidence == "classifier":
                self._classifier = classifier_from(samples, _tail(model, program), self._heads)
        if config.risk is not None:
            self.calibration = calibrate(
                config,
                windows,
                lambda: ModuleReader(model) if program is None else ProgramReader(program),
                partial(self._confident, model, program),
            )
            if self._say is not None:
                self._say(f"Early exit: {self.calibration}.")
        self._windows = None

    def _note(self, request: Request, layers: int) -> None:
        """A token of a request went through so many layers."""
        self._counts[layers] += 1
        if request in self._open_traces:
            self._open_traces[request].append(layers)

    def _captured(self, model: PreTrainedModel, program: Program) -> ExitGraphs:
        """Sessions for this program; what is to be learnt is learnt before."""
        from hayless.methods.decoding.early_exit.captured import ExitGraphs, Rule  # needs Triton

        self._learn(model, program)
        if self._graphs is None or self._graphs.program is not program:
            config = self.config
            scheduled = config.confidence == "schedule"
            rule = Rule(
                self.exits if scheduled or self.threshold < 1 else (),
                "softmax" if config.confidence == "schedule" else config.confidence,
                self.threshold,
                self._classifier,
                self._heads,
                partial(scheduled_layers, config, self.layers) if scheduled else None,
            )
            self._graphs = ExitGraphs(program, rule, self._note)
        return self._graphs

    def _confident(self, model: PreTrainedModel, program: Program | None, threshold: float) -> WatchedReader:
        confidence = self._confidence(_tail(model, program))
        return reader(model, program, Confident(confidence, threshold, self.exits, self.layers, self._heads))

    def _confidence(self, tail: Tail) -> Confidence:
        if self.config.confidence == "state":
            return ByState()
        if self.config.confidence == "classifier":
            assert self._classifier is not None, "it is learnt first"
            return ByClassifier(self._classifier, tail)
        return BySoftmax(tail)


class _Batch(EagerBatch):
    """A batch that notes behind which layer each token left."""

    def __init__(
        self,
        reader: WatchedReader,
        requests: Sequence[Request],
        depth: int,
        note: Callable[[Request, int], None],
    ) -> None:
        super().__init__(reader, requests)
        self._watch, self._depth, self._note = reader.watch, depth, note

    def next(self) -> list[list[Chosen]]:
        """The next token of each active request."""
        joining = len(self._joining)
        found = super().next()
        layers = [*(self._watch.layers if joining < len(found) else ()), *[self._depth] * joining]
        for request, layer in zip(self.active, layers, strict=True):
            self._note(request, layer)
        return found


def _tail(model: PreTrainedModel, program: Program | None) -> Tail:
    return ModuleTail(model) if program is None else ProgramTail(program)


def _wanted(config: EarlyExitConfig) -> int:
    """Windows to look at, at most; what is fitted learns from as many as the threshold is found on."""
    return config.windows * (2 if config.fits and config.risk is not None else 1)


def _tokens_of(text: str, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """The tokens of each text file."""
    if tokenizer is None:
        raise RequestError("early_exit.text needs a tokenizer.", hint="Give token ids as windows, or a tokenizer.")
    return [list(tokenizer(read_text(file.path))["input_ids"]) for file in find_files(text).files]
