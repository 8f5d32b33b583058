"""The trainer: one loop for every objective, optimizer and memory method, which it knows only by their slots.

A run lives in a folder: `metrics.jsonl` and `checkpoints/`. Killed at any moment and started again with the same
arguments, it goes on from the last checkpoint and ends with the same bits as if nothing had happened (on the CPU; on a
GPU with `deterministic`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.data.batches import Batch, Batches
from hayless.decode.engine import Engine
from hayless.measure.memory import peak_bytes
from hayless.train import randomness
from hayless.train.attention import attention
from hayless.train.blocks import compiled
from hayless.train.checkpoint import Checkpoints
from hayless.train.failures import explained
from hayless.train.loop import Loop
from hayless.train.metrics import MetricsLog
from hayless.train.monitor import Monitor
from hayless.train.settings import TrainSettings
from hayless.train.signals import Signals
from hayless.train.slots import Objective
from hayless.train.state import Buffers, RunState, restore, setup_of
from hayless.train.update import make_updater
from hayless.train.utilisation import device_rate, flops_per_token


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run. Losses are nats a unit (token or pair); `tokens` are input tokens without padding.

    `loss` is the last update's, on its own batch; `validation_loss` and `best_loss` are held-out (None where nothing is
    held out). `seconds` are of all parts of a resumed run; `tokens_per_second` is over all of them, validation and
    saving included. `stopped`: `finished` did all steps, `patience` stopped early. With patience the model has the
    weights of `best_step`.
    """

    steps: int
    loss: float
    validation_loss: float | None
    best_loss: float | None
    best_step: int | None
    tokens: int
    trained_tokens: int
    padded_tokens: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    stopped: Literal["finished", "patience"]


class Trainer:
    """Trains `model` in place.

    `objective`, `optimizer` and `memory` are configs of methods that fill those slots. `batches` gives the
    micro-batches of each update; `validation` are the held-out batches (none: no validation), each computed at once.
    `tokenizer` is needed for samples only. `predicted_bytes` is quoted where memory runs out. RequestError for settings
    that do not go together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainSettings,
        *,
        objective: MethodConfig,
        optimizer: MethodConfig,
        memory: Sequence[MethodConfig] = (),
        batches: Batches,
        validation: Iterable[Batch] = (),
        folder: Path,
        predicted_bytes: int | None = None,
        console: Console | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.folder = folder
        self._objective: Objective = method_of(objective).load()(objective)
        self._optimizer = optimizer
        self._memory = memory
        self._batches = batches
        self._validation = tuple(validation)
        self._predicted_bytes = predicted_bytes
        self._console = console or Console(stderr=True)
        self._setup = setup_of(settings, objective, optimizer)
        self._check()

    def run(self) -> TrainResult:
        """Train to the end, from the last checkpoint if there is one.

        Raises Interrupted (after saving) on SIGINT or SIGTERM; WorkError for a loss that is not finite, memory that ran
        out or a full disk, with the last good checkpoint kept; RequestError where the folder holds another run.
        """
        settings, model = self.settings, self.model
        remarks: list[str] = []
        with ExitStack() as stack:
            stack.enter_context(explained(model, settings, self._predicted_bytes, saving=bool(self._memory)))
            stack.enter_context(randomness.deterministic(settings.deterministic))
            signals = stack.enter_context(Signals())
            buffers = Buffers(model)
            updater = make_updater(model, settings.precision, self._optimizer)
            stack.callback(updater.close)
            randomness.seed_all(settings.seed)
            checkpoints = Checkpoints(self.folder / "checkpoints", settings.keep_last, remarks.append)
            found, state = checkpoints.latest(), RunState()
            if found:
                state = restore(found[1], self._setup, updater, model)
                remarks.append(f"Going on from step {state.step}.")
            packed = self._objective.kind != "preference"
            remarks.append(stack.enter_context(attention(model, settings, packed=packed)))
            if self._goes_backward_twice():
                remarks.append("Each update goes backward twice: once to measure gradients, once to move the weights.")
            for config in self._memory:
                stack.enter_context(method_of(config).load().install(model, config))
            if settings.compile:
                stack.enter_context(compiled(model))
            stack.enter_context(_training(model))
            log = stack.enter_context(closing(MetricsLog(self.folder / "metrics.jsonl", after=state.step)))
            monitor = stack.enter_context(self._monitor(log, state))
            for remark in remarks:
                monitor.event(state.step, remark)
            loop = Loop(
                model=model,
                tokenizer=self.tokenizer,
                settings=settings,
                setup=self._setup,
                objective=self._objective,
                updater=updater,
                buffers=buffers,
                batches=self._batches,
                validation=self._validation,
                checkpoints=checkpoints,
                state=state,
                monitor=monitor,
                signals=signals,
            )
            loop.run()
            return self._result(state, "patience" if loop.out_of_patience else "finished")

    def _monitor(self, log: MetricsLog, state: RunState) -> Monitor:
        settings, device = self.settings, self.model.device
        return Monitor(
            log,
            total=settings.total_steps,
            every=settings.log_every,
            start=state.step,
            tokens=state.tokens,
            device=device,
            flops_per_token=flops_per_token(self.model, settings.sequence_length),
            device_rate=device_rate(device, settings.precision),
            console=self._console,
            tensorboard=self.folder / "tensorboard" if settings.tensorboard else None,
        )

    def _result(self, state: RunState, stopped: Literal["finished", "patience"]) -> TrainResult:
        assert state.loss is not None, "a run has at least one step"
        return TrainResult(
            steps=state.step,
            loss=state.loss,
            validation_loss=state.validation_loss,
            best_loss=state.best_loss,
            best_step=state.best_step,
            tokens=state.tokens,
            trained_tokens=state.trained_tokens,
            padded_tokens=state.padded_tokens,
            seconds=state.seconds,
            tokens_per_second=state.tokens / state.seconds,
            peak_bytes=peak_bytes(self.model.device),
            stopped=stopped,
        )

    def _goes_backward_twice(self) -> bool:
        """Whether weights are moved in the backward pass by what must know all gradients before."""
        knows_all = self.settings.clip_norm is not None or self.settings.precision == "fp16"
        return knows_all and method_of(self._optimizer).load().fused

    def _check(self) -> None:
        settings = self.settings
        if settings.patience and not (self._validation and settings.validate_every):
            raise RequestError(
                "patience needs held-out data that is looked at while training.", hint="Set validate_every."
            )
        if settings.compile and self._goes_backward_twice():
            # Compiled backward passes reuse the memory of what the forward pass saved.
            raise NotSupported(
                f"{self._optimizer.method} goes backward twice with clip_norm or fp16, and a compiled model cannot.",
                hint="Set compile: false; or clip_norm: null, in another precision.",
            )
        if settings.sample_every:
            if self.tokenizer is None:
                raise RequestError("sample_every needs a tokenizer.")
            Engine(self.model, self.tokenizer)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode (dropout on); each module gets its own mode back."""
    before = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
