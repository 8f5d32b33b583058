"""Contenders that train on packed text: with batches made before and as they are needed, under masks and by lengths.

The text is the running interpreter's own library in 8,192 byte pairs: its documents, most of them longer than a row, or
short examples of what its signatures do. The model has random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from parts.training import BETAS, CLIP_NORM, EPS, LEARNING_RATE, WEIGHT_DECAY, Training
from rich.console import Console

from hayless.core.attention import AttentionChoice
from hayless.core.registry import configure, method_of
from hayless.data import stdlib
from hayless.data.batches import Batch, Batches
from hayless.data.config import DataConfig, Source
from hayless.data.store import TokenStore, prepare
from hayless.data.tokenizer import load, save, train
from hayless.measure.speed import Spread
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Figure, Prepared
from hayless.train.attention import attention
from hayless.train.checkpoint import Checkpoints, Snapshot
from hayless.train.loop import Loop
from hayless.train.metrics import MetricsLog, read
from hayless.train.monitor import Monitor
from hayless.train.settings import TrainSettings
from hayless.train.signals import Signals
from hayless.train.state import Buffers, RunState
from hayless.train.step import update
from hayless.train.update import make_updater

WAITING = "waiting for data"
"""Share of the time of training that its loop waits for the next batch."""
_VOCABULARY = 8192
_TRAINED_ON = 2 * 10**6
_CHECKED = 3
_FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "library"

Text = Literal["stdlib", "stdlib_instructions"]
"""Documents, or examples."""


@cache
def library(text: Text) -> TokenStore:
    """The library as tokens, mapped into memory; made once and kept for the processes that follow."""
    words = _FOLDER / "tokenizer"
    if not words.is_dir():
        texts, size = [], 0
        for document in stdlib.read().documents[::7]:
            texts.append(document.text)
            size += len(document.text)
            if size > _TRAINED_ON:
                break
        save(train(texts, "bpe", _VOCABULARY), words)
    config = DataConfig(sources=(Source(builtin=text),), near_duplicates=False)
    return prepare(config, load(words), _FOLDER, kind="lm" if text == "stdlib" else "sft").train


@dataclass(eq=False)
class Session:
    """A model with its optimizer, moved by whoever trains it."""

    step: Training
    text: Text

    def __post_init__(self) -> None:
        self.model = self.step.model()
        self.objective: Any = method_of(configure("lm")).load()(configure("lm"))
        options = {"learning_rate": LEARNING_RATE, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
        self.updater = make_updater(self.model, self.step.precision, configure("adamw", decay="all", **options))
        self.batches = Batches(library(self.text), sequence_length=self.step.length, batch_size=self.step.rows)

    def settings(self, **options: Any) -> TrainSettings:
        """The settings of a run that trains so."""
        plain = {"batch_size": self.step.rows, "sequence_length": self.step.length, "precision": self.step.precision}
        return TrainSettings.model_validate({"steps": 1, "clip_norm": CLIP_NORM, **plain, **options})

    def attending(self, settings: TrainSettings) -> AbstractContextManager[str]:
        """The model's attention while it trains on packed rows."""
        return attention(self.model, settings, packed=True)

    def made(self, step: int) -> list[Batch]:
        """The batches of a step, in page-locked memory where there is a GPU."""
        found = self.batches.step(step)
        return [batch.pin_memory() for batch in found] if self.step.device == "cuda" else found

    def gradients(self, settings: TrainSettings, pieces: Sequence[Batch]) -> tuple[float, float]:
        """Loss a token and gradient norm of a batch; the weights are not moved."""
        units = sum(self.objective.units(piece) for piece in pieces)
        total = 0.0
        with self.attending(settings):
            for piece in pieces:
                loss = self.objective.loss(self.model, piece.to(self.model.device)).total / units
                self.updater.backward(loss)
                total += float(loss.detach())
        norm = float(self.updater.norm())
        self.updater.drop_gradients()
        return total, norm


_sessions: WeakValueDictionary[str, Session] = WeakValueDictionary()


def session(step: Training, text: Text = "stdlib") -> Session:
    """The session of this process, which lasts as long as anybody trains in it: two do not fit into memory."""
    name = f"{step} on {text}"
    found = _sessions.get(name)
    if found is None:
        found = _sessions[name] = Session(step, text)
    return found


@dataclass(frozen=True)
class Made:
    """Batches that were all made before, by step; they stand in for those that are made as they are needed."""

    by_step: Mapping[int, list[Batch]]

    def step(self, step: int) -> list[Batch]:
        """The batches of a step."""
        return self.by_step[step]


class Unsaved(Checkpoints):
    """Checkpoints that are not written: gigabytes to the disk are another measurement."""

    def save(self, step: int, snapshot: Snapshot, best: int | None) -> Path:
        """Nothing."""
        return self.path(step)


def training_loop(step: Training, steps: int, rounds: int, *, made_before: bool) -> Prepared:
    """The trainer's own loop for `steps` updates a repeat, each repeat going on in the data: reading ahead in a thread,
    reports and their file included, without saving. `rounds` repeats at most."""
    here = session(step)
    numbers = range(steps * rounds)
    batches: Any = Made({number: here.made(number) for number in numbers}) if made_before else here.batches
    shares: list[float] = []
    done = 0

    def run() -> None:
        nonlocal done
        settings = here.settings(steps=done + steps, log_every=steps)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hayless-bench-")))
            stack.enter_context(here.attending(settings))
            log = MetricsLog(folder / "metrics.jsonl", after=done)
            stack.callback(log.close)
            _loop(stack, here, settings, batches, log, done).run()
            shares.append(read(log.path)[-1]["data_wait_share"])
        done += steps

    def answer() -> Answer:
        losses = [here.gradients(here.settings(), batches.step(number))[0] for number in range(_CHECKED)]
        return {"losses of the first batches": losses}

    def figures() -> list[Figure]:
        return [
            Figure(WAITING, "of the time", Spread.of(shares).median),
            Figure(f"{WAITING}, worst repeat", "of the time", max(shares)),
        ]

    return Prepared(run, answer, figures=figures)


def packed_step(step: Training, text: Text, attention: AttentionChoice) -> Prepared:
    """The trainer's update on one batch of packed rows, its finite check and figures included."""
    here = session(step, text)
    settings = here.settings(attention=attention)
    pieces = here.made(0)

    def run() -> None:
        with here.attending(settings):
            update(here.model, here.objective, here.updater, pieces, settings, step=1, share=1.0)

    def answer() -> Answer:
        losses, norms = zip(*(here.gradients(settings, here.made(number)) for number in range(_CHECKED)), strict=True)
        return {"losses of the first batches": losses, "gradient norms": norms}

    return Prepared(run, answer)


def _loop(stack: ExitStack, here: Session, settings: TrainSettings, batches: Any, log: MetricsLog, done: int) -> Loop:
    """A loop that goes on after `done` updates."""
    monitor = Monitor(
        log,
        total=settings.total_steps,
        every=settings.log_every,
        start=done,
        tokens=0,
        device=here.model.device,
        flops_per_token=None,
        device_rate=None,
        console=Console(quiet=True),
        tensorboard=None,
    )
    return Loop(
        model=here.model,
        tokenizer=None,
        settings=settings,
        setup={},
        objective=here.objective,
        updater=here.updater,
        buffers=Buffers(here.model),
        batches=batches,
        validation=(),
        checkpoints=Unsaved(log.path.parent, settings.keep_last, monitor.say),
        state=RunState(step=done),
        monitor=stack.enter_context(monitor),
        signals=stack.enter_context(Signals()),
    )
