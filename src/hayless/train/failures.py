"""Turning what stops a run into an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from hayless.core.errors import RequestError, WorkError
from hayless.core.units import format_bytes
from hayless.measure.machine import memory_bytes
from hayless.measure.memory import ran_out
from hayless.train.settings import TrainSettings

_DTYPES = ("same dtype", "same data type")


class Interrupted(WorkError):
    """SIGINT or SIGTERM stopped the run after a step; everything is saved and the same request goes on from there."""


@contextmanager
def explained(
    model: PreTrainedModel, settings: TrainSettings, predicted_bytes: int | None, saving: bool
) -> Iterator[None]:
    """Raise WorkError where memory runs out in the block, RequestError where dtypes do not go together.

    `saving`: whether a memory method is in use already.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if ran_out(error):
            raise _out_of_memory(model, settings, predicted_bytes, saving) from error
        if any(words in str(error) for words in _DTYPES):
            raise RequestError(
                f"Weights of different dtypes meet in one operation under precision {settings.precision}: {error}",
                hint="Use precision autocast, or load the model with dtype float32.",
            ) from error
        raise


def _out_of_memory(
    model: PreTrainedModel, settings: TrainSettings, predicted_bytes: int | None, saving: bool
) -> WorkError:
    size = settings.micro_batch_size or settings.batch_size
    if model.device.type == "cuda":
        there = torch.cuda.get_device_properties(model.device).total_memory
        peak = f", of which {format_bytes(torch.cuda.max_memory_allocated(model.device))} were in use"
    else:
        there, peak = memory_bytes(), ""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    predicted = f" {format_bytes(predicted_bytes)} were predicted." if predicted_bytes is not None else ""
    ways = []
    if size > 1:
        ways.append(f"micro_batch_size: {max(1, size // 2)} (the result stays the same)")
    if not saving:
        ways.append("memory: [checkpointing]")
    if settings.precision in ("fp32", "fp16"):
        ways.append("precision: autocast")
    ways.append(f"sequence_length below {settings.sequence_length}")
    if gradients:
        ways.append("lora instead of training every weight")
    return WorkError(
        f"Memory ran out: {model.device} has {format_bytes(there)}{peak}.{predicted} Weights take"
        f" {format_bytes(weights)} and gradients {format_bytes(gradients)}; moments and activations come on top.",
        hint="What would need less: " + "; ".join(ways) + ".",
    )
