"""A few updates under a hard cap of the device's memory, in a fresh process: does a way to train fit as it is said to?

The cap is PyTorch's own (`torch.cuda.set_per_process_memory_fraction`): its allocator raises where it would have to
take more from the driver. It holds for all that is done here, making the model included. Weights are random and made on
the device; packed ones as random codes, without the whole model that a real run packs. CPUs have no such cap: there
only the peak is read.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from hayless.core.errors import WorkError
from hayless.core.method import Aspect, MethodConfig
from hayless.core.registry import configured, method_of
from hayless.measure.memory import MemoryMeter, enough_memory
from hayless.measure.process import answer
from hayless.model import packed
from hayless.model.build import build_model, checked_device, read_config, torch_dtype, unfilled_model
from hayless.model.transform import apply
from hayless.train.trial import Trial, batches, ready


class CappedTrial(Trial):
    """A trial of `updates` updates in `cap_bytes` of memory, the CUDA context not counted."""

    cap_bytes: int = Field(ge=1)
    updates: int = Field(2, ge=1)


class Outcome(BaseModel):
    """Whether it fitted, and if not what was said; bytes at the peak, in use and (CUDA only) reserved; seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fits: bool
    reason: str
    peak_bytes: int
    reserved_bytes: int | None
    seconds: float


def run(trial: CappedTrial) -> Outcome:
    """Do it in this process."""
    device, start, reason = checked_device(trial.device), time.perf_counter(), ""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, trial.cap_bytes / whole), device)
    meter = MemoryMeter(device)
    try:
        with enough_memory("It does not fit."), contextlib.ExitStack() as stack:
            model = made(trial, device)
            work = stack.enter_context(ready(model, trial, batches(trial)))
            for _ in range(trial.updates):
                work.step()
    except WorkError as error:
        reason = error.message
    memory = meter.read()
    return Outcome(
        fits=not reason,
        reason=reason,
        peak_bytes=memory.model_bytes,
        reserved_bytes=memory.reserved_bytes,
        seconds=round(time.perf_counter() - start, 2),
    )


def made(trial: Trial, device: torch.device) -> PreTrainedModel:
    """The trial's model with random weights on `device`, transformed; what packs weights only makes their structure."""
    transforms = configured(trial.transforms)
    packing = [config for config in transforms if _packs(config)]
    if packing:
        model = _packed(trial, packing).to(device)  # type: ignore[arg-type]
        _fill(model)
    else:
        model = build_model(trial.config, dtype=trial.dtype, device=device, draw_there=True)
    apply(model, [config for config in transforms if config not in packing])
    return model


def _packed(trial: Trial, packing: list[MethodConfig]) -> PreTrainedModel:
    """A packed model whose tensors hold anything; on the CPU, where untouched memory takes none."""
    shape = read_config(trial.config)
    shape.hayless = {"version": "", "methods": [config.model_dump(mode="json") for config in packing]}
    model = unfilled_model(shape, torch_dtype(trial.dtype))
    packed.restore(model)
    return model


@torch.no_grad()
def _fill(model: PreTrainedModel) -> None:
    """Random matrices and codes, and norms of ones, in place. Buffers that no file has are as they must be."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(1.0)
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.dtype is torch.uint8:
            buffer.random_(0, 256)


def _packs(config: MethodConfig) -> bool:
    return any(claim.aspect is Aspect.STORAGE for claim in method_of(config).claims(config))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's side."""
    return run(CappedTrial.model_validate(request)).model_dump(mode="json")


if __name__ == "__main__":
    answer(_answer)
