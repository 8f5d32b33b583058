"""One update: a batch in micro-batches, gradients of its mean loss, a finite check, a move of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hayless.core.errors import RequestError, WorkError
from hayless.data.batches import IGNORED, Batch
from hayless.train.precision import arithmetic
from hayless.train.settings import TrainSettings
from hayless.train.slots import Objective
from hayless.train.update import Updater

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
    batch: Batch,
    settings: TrainSettings,
    *,
    step: int,
    share: float,
) -> StepFigures:
    """Move the weights by one batch (on the CPU), at `share` of the peak learning rate. `step` counts from 1.

    The loss is the mean over the units of the whole batch, so that the result does not depend on the size of
    micro-batches. RequestError for a batch without anything to learn; WorkError, before weights are touched, where the
    loss or a gradient is not finite.
    """
    units = objective.units(batch)
    if not units:
        raise RequestError(
            f"The batch of step {step} has no {objective.unit} to train on ({_named(batch)}).",
            hint="Are outputs empty, or cut off by sequence_length?",
        )
    pieces = list(micro_batches(batch, settings.micro_batch_size or settings.batch_size))
    totals = []
    metrics: dict[str, torch.Tensor] = {}
    for piece in pieces:
        with arithmetic(settings.precision, model.device):
            loss = objective.loss(model, piece.to(model.device))
        updater.backward(loss.total / units)
        totals.append(loss.total.detach())
        for name, value in loss.metrics.items():
            metrics[name] = metrics[name] + value if name in metrics else value
    norm = updater.norm()
    # One transfer, so that a GPU is waited for once an update.
    figures = torch.stack([value.float().to(norm.device) for value in (*totals, norm, *metrics.values())]).tolist()
    losses, gradient_norm, sums = figures[: len(totals)], figures[len(totals)], figures[len(totals) + 1 :]
    _check_finite(step, losses, gradient_norm, pieces, settings)
    moved = updater.step(share, norm, settings.clip_norm)
    tokens = int((batch.segments >= 0).sum())
    return StepFigures(
        loss=math.fsum(losses) / units,
        metrics={name: total / units for name, total in zip(metrics, sums, strict=True)},
        gradient_norm=gradient_norm,
        moved=moved,
        tokens=tokens,
        trained_tokens=int((batch.targets != IGNORED).sum()),
        padded_tokens=batch.segments.numel() - tokens,
    )


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """The rows of `batch`, `size` at a time; the last piece may have fewer."""
    for start in range(0, batch.input_ids.shape[0], size):
        yield batch.rows(start, start + size)


def _check_finite(
    step: int, losses: list[float], gradient_norm: float, pieces: list[Batch], settings: TrainSettings
) -> None:
    bad = [piece for piece, loss in zip(pieces, losses, strict=True) if not math.isfinite(loss)]
    if bad:
        what, names = "loss", "; ".join(_named(piece) for piece in bad)
    elif not math.isfinite(gradient_norm) and settings.precision != "fp16":
        what, names = "gradient", "; ".join(_named(piece) for piece in pieces)
    else:
        return
    wider = "" if settings.precision in ("fp32", "autocast") else " precision: autocast or fp32;"
    raise WorkError(
        f"The {what} of step {step} is not finite ({names}). The weights were not moved.",
        hint=f"Try a lower learning_rate, a longer warm-up;{wider} and look at these documents.",
    )


def _named(batch: Batch) -> str:
    names = list(dict.fromkeys(name for row in batch.documents for name in row))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "documents " + ", ".join(names[:_SHOWN]) + more
