"""One update: a batch in micro-batches, gradients of its mean loss, a finite check, a move of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hayless.core.errors import RequestError, WorkError
from hayless.data.batches import Batch
from hayless.train.precision import arithmetic
from hayless.train.settings import TrainSettings
from hayless.train.slots import Objective, Scheduled
from hayless.train.updater import Updater

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What an update gave. `loss` and `metrics` are means over units; `moved` is False where fp16 overflowed."""

    loss: float
    metrics: dict[str, float]
    gradient_norm: float
    moved: bool
    tokens: int
    trained_tokens: int
    padded_tokens: int


def update(
    model: PreTrainedModel,
    objective: Objective,
    updater: Updater,
    pieces: Sequence[Batch],
    settings: TrainSettings,
    *,
    step: int,
    share: float,
) -> StepFigures:
    """Move the weights by one batch, given as micro-batches on the CPU, at `share` of the peak learning rate.

    The loss is the mean over the units of all micro-batches together, so that the result does not depend on how the
    batch was cut. `step` counts from 1. RequestError for a batch without anything to learn; WorkError where the loss or
    a gradient is not finite, before weights are touched (unless the updater moves them in the backward pass).
    """
    units = sum(objective.units(piece) for piece in pieces)
    if not units:
        raise RequestError(
            f"The batch of step {step} has no {objective.unit} to train on ({_named(pieces)}).",
            hint="Are outputs empty, or cut off by sequence_length?",
        )
    updater.begin(share, settings.clip_norm, len(pieces))
    if isinstance(objective, Scheduled):
        objective.at(step, settings.total_steps)
    totals = []
    metrics: dict[str, torch.Tensor] = {}
    for piece in pieces:
        with arithmetic(settings.precision, model.device):
            loss = objective.loss(model, piece.to(model.device, non_blocking=True))
        updater.backward(loss.total / units)
        totals.append(loss.total.detach())
        for name, value in loss.metrics.items():
            metrics[name] = metrics[name] + value if name in metrics else value
    norm = updater.norm()
    # One transfer, so that a GPU is waited for once an update.
    figures = torch.stack([value.float().to(norm.device) for value in (*totals, norm, *metrics.values())]).tolist()
    losses, gradient_norm, sums = figures[: len(totals)], figures[len(totals)], figures[len(totals) + 1 :]
    _check_finite(step, losses, gradient_norm, pieces, settings, moved=updater.moves_in_backward)
    moved = updater.step(norm)
    return StepFigures(
        loss=math.fsum(losses) / units,
        metrics={name: total / units for name, total in zip(metrics, sums, strict=True)},
        gradient_norm=gradient_norm,
        moved=moved,
        tokens=sum(piece.input_tokens for piece in pieces),
        trained_tokens=sum(piece.trained_tokens for piece in pieces),
        padded_tokens=sum(piece.padded_tokens for piece in pieces),
    )


def _check_finite(
    step: int,
    losses: list[float],
    gradient_norm: float,
    pieces: Sequence[Batch],
    settings: TrainSettings,
    *,
    moved: bool,
) -> None:
    bad = [piece for piece, loss in zip(pieces, losses, strict=True) if not math.isfinite(loss)]
    if bad:
        what, names = "loss", _named(bad)
    elif not math.isfinite(gradient_norm) and settings.precision != "fp16":
        what, names = "gradient", _named(pieces)
    else:
        return
    wider = "" if settings.precision in ("fp32", "autocast") else " precision: autocast or fp32;"
    weights = "were moved by it: the last checkpoint has good ones" if moved else "were not moved"
    raise WorkError(
        f"The {what} of step {step} is not finite ({names}). The weights {weights}.",
        hint=f"Try a lower learning_rate, a longer warm-up;{wider} and look at these documents.",
    )


def _named(pieces: Sequence[Batch]) -> str:
    names = list(dict.fromkeys(name for piece in pieces for row in piece.documents for name in row))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "documents " + ", ".join(names[:_SHOWN]) + more
