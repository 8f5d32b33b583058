"""Contenders that train a shape in a way that `hayless plan --compare` names, by the trainer's own update.

Weights are random and made on the device; each step learns from the same random tokens.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from hayless.core.devices import find
from hayless.core.measurement import Goal
from hayless.core.registry import configured
from hayless.core.units import format_bytes
from hayless.model.build import build_model
from hayless.model.streaming import build_and_pack, packs_one_by_one
from hayless.model.transform import apply
from hayless.plan.grid import TrainCase
from hayless.plan.lomo import GIB
from hayless.plan.memory import CONTEXT_BYTES, MARGIN
from hayless.study.bench.gate import Answer, close
from hayless.study.bench.spec import PEAK, TIME, Contender, Figure, Prepared, Unavailable
from hayless.train.step import StepFigures, update
from hayless.train.trial import Trial, batches, ready

LEARNT = "loss, the last step's less the first one's"
BUILT = "peak memory while it is built"
SAME = close(relative=0.02)
"""Of 16-bit losses and norms of one batch, before anything is moved."""

Goals = Goal | tuple[Goal, ...] | None


def contender(name: str, case: TrainCase, *, peak: Goals = None, time: Goals = None) -> Contender:
    """A case that must learn, and whose peak and time may have goals."""
    goals = {LEARNT: Goal(op="<=", value=0.0)} | ({PEAK: peak} if peak else {}) | ({TIME: time} if time else {})
    return Contender(name, Trained(case).prepare, goals=goals)


def under(gib: float) -> Goal:
    """At most so much."""
    return Goal(op="<=", value=gib * GIB)


def as_predicted(case: TrainCase) -> Goals:
    """The peak that is predicted for a case, within the margin of predictions."""
    plan = case.predicted(find("H200"), "cuda")
    assert plan.train
    peak = plan.train.peak.total
    return Goal(op="<=", value=peak * (1 + MARGIN)), Goal(op=">=", value=peak * (1 - MARGIN))


@dataclass(frozen=True)
class Trained:
    """A case of the grid on the GPU. `scheduled` is the learning rate as a share of the optimizer's own."""

    case: TrainCase
    scheduled: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.case.batch * self.case.sequence

    def prepare(self) -> Prepared:
        """The model with its optimizer, packed while it is built where the way packs weights.

        Unavailable where it would not fit by prediction, with both figures.
        """
        self._check_room()
        trial = Trial.model_validate(self.case.asked("cuda", "cuda", 0.0))
        pieces = batches(trial)
        before = torch.cuda.memory_allocated()
        transforms = configured(trial.transforms)
        packing = [config for config in transforms if packs_one_by_one(config)]
        if packing:
            model, _ = build_and_pack(trial.config, packing, dtype=trial.dtype, device="cuda")
        else:
            model = build_model(trial.config, dtype=trial.dtype, device="cuda", draw_there=True)
        apply(model, [config for config in transforms if config not in packing])
        built = torch.cuda.max_memory_allocated() - before
        # What is installed stays while contexts are open: as long as the process lives.
        opened = ExitStack()
        work = opened.enter_context(ready(model, trial, pieces))
        atexit.register(opened.close)
        done: list[StepFigures] = []

        def step() -> None:
            number = len(done) + 1
            share = self.scheduled
            done.append(update(model, work.objective, work.updater, pieces, work.settings, step=number, share=share))

        def answer() -> Answer:
            if not done:
                step()
            # Before anything was moved; later losses are each optimizer's own.
            return {"loss": done[0].loss, "gradient norm": done[0].gradient_norm}

        def figures() -> Sequence[Figure]:
            learnt = Figure(LEARNT, "nats a token", done[-1].loss - done[0].loss)
            return [learnt, Figure(BUILT, "B", built)] if packing else [learnt]

        return Prepared(step, answer, figures=figures)

    def _check_room(self) -> None:
        there = torch.cuda.get_device_properties(0).total_memory
        plan = self.case.predicted(find(torch.cuda.get_device_name()), "cuda")
        assert plan.train
        needs = plan.train.peak.total + CONTEXT_BYTES
        if needs > there:
            raise Unavailable(
                f"needs {format_bytes(needs)} by prediction ({self.case.name}); the card has {format_bytes(there)}"
            )
