"""The loop: update, report, validate, sample, save, and stop when it is time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import WorkError
from hayless.data.batches import Batch, Batches
from hayless.data.prefetch import prefetched
from hayless.train.checkpoint import Checkpoints
from hayless.train.failures import Interrupted
from hayless.train.monitor import Monitor, StepReport
from hayless.train.schedule import rate
from hayless.train.settings import TrainSettings
from hayless.train.signals import Signals
from hayless.train.slots import Objective
from hayless.train.state import Buffers, RunState, restore_weights, snapshot
from hayless.train.step import update
from hayless.train.updater import Updater
from hayless.train.validate import held_out, samples


@dataclass
class Loop:
    """One run from `state` to its end."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    settings: TrainSettings
    setup: dict[str, object]
    objective: Objective
    updater: Updater
    buffers: Buffers
    batches: Batches
    validation: Sequence[Batch]
    checkpoints: Checkpoints
    state: RunState
    monitor: Monitor
    signals: Signals

    def run(self) -> None:
        """Every step that is left. With patience, the best weights are put back at the end."""
        self._clock = time.perf_counter() - self.state.seconds
        coming = prefetched(
            self.batches, self.state.step, self.settings.total_steps, pin=self.model.device.type == "cuda"
        )
        with closing(coming):
            while not self.out_of_patience:
                asked = time.perf_counter()
                found = next(coming, None)
                if found is None:
                    break
                self._step(found[1], waited=time.perf_counter() - asked)
        if self.settings.patience and self.state.best_step not in (None, self.state.step):
            self._back_to_best()

    @property
    def out_of_patience(self) -> bool:
        """Whether enough validations have passed without a better loss."""
        return 0 < self.settings.patience <= self.state.validations_since_best

    def _step(self, pieces: Sequence[Batch], waited: float) -> None:
        settings, state, total = self.settings, self.state, self.settings.total_steps
        step = state.step + 1
        share = rate(settings.schedule, state.step, total)
        figures = update(self.model, self.objective, self.updater, pieces, settings, step=step, share=share)
        state.step = step
        state.loss = figures.loss
        state.tokens += figures.tokens
        state.trained_tokens += figures.trained_tokens
        state.padded_tokens += figures.padded_tokens
        state.seconds = time.perf_counter() - self._clock
        self.monitor.step(
            StepReport(
                step=step,
                loss=figures.loss,
                learning_rate=self.updater.rate(),
                gradient_norm=figures.gradient_norm,
                tokens=state.tokens,
                trained_tokens=state.trained_tokens,
                padded_tokens=state.padded_tokens,
                seconds=state.seconds,
                waited=waited,
                metrics=figures.metrics,
            )
        )
        if not figures.moved:
            self.monitor.event(step, f"step {step}: fp16 gradients overflowed; left out, and the loss scale halved")
        last = step == total
        better = bool(self.validation) and (last or _due(step, settings.validate_every)) and self._validate()
        if _due(step, settings.sample_every):
            self._sample()
        keeps_best = better and bool(settings.checkpoint_every or settings.patience)
        ends = last or self.out_of_patience or self.signals.received
        if ends or keeps_best or _due(step, settings.checkpoint_every):
            self._save()
        if self.signals.received:
            raise Interrupted(
                f"Stopped by {self.signals.received} after step {step} of {total}; everything is saved.",
                hint="The same command goes on from there.",
            )

    def _validate(self) -> bool:
        """Look at the held-out loss. True where it is the best so far."""
        state = self.state
        found = held_out(self.model, self.objective, self.validation, self.settings)
        loss = found["loss"]
        if not math.isfinite(loss):
            raise WorkError(
                f"The held-out loss at step {state.step} is not finite, though the training loss is.",
                hint="Try a lower learning_rate, or precision autocast or fp32.",
            )
        better = state.best_loss is None or loss < state.best_loss
        state.validation_loss = loss
        if better:
            state.best_loss, state.best_step, state.validations_since_best = loss, state.step, 0
        else:
            state.validations_since_best += 1
        self.monitor.validation(state.step, found, best=better)
        return better

    def _sample(self) -> None:
        assert self.tokenizer is not None, "the trainer checks this before it starts"
        # Lengths change with every token, for which a compiled block would be compiled anew.
        with torch.compiler.set_stance("force_eager" if self.settings.compile else "default"):
            texts = samples(self.model, self.tokenizer, self.settings.prompts, self.settings)
        for prompt, text in zip(self.settings.prompts, texts, strict=True):
            self.monitor.sample(self.state.step, prompt, text)

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self._clock
        self.monitor.log.sync()
        content = snapshot(self.state, self.setup, self.updater, self.buffers.changed(), self.model.device)
        self.checkpoints.save(self.state.step, content, self.state.best_step)

    def _back_to_best(self) -> None:
        assert self.state.best_step is not None
        restore_weights(self.checkpoints.load(self.state.best_step), self.updater, self.model)
        self.monitor.event(self.state.step, f"The model has the weights of step {self.state.best_step}, the best.")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
