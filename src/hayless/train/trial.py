"""A few updates of a model with random weights, in a fresh process: what training takes, without data or files.

The updates are the trainer's own (`hayless.train.step.update` with the same slots), on random tokens that lie in
memory; what is left out is what a run does beside them: reading data, validation, checkpoints. On the CPU a toy does
the same first, so that what libraries set up on first use is not taken for the model's memory. On CUDA nothing is left
out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from hayless.core.families import dims_of
from hayless.core.measurement import Machine
from hayless.core.options import Options
from hayless.core.registry import configured, method_of
from hayless.data.batches import IGNORED, Batch
from hayless.measure import machine
from hayless.measure.memory import MemoryMeter, device_used_bytes, enough_memory, peak_bytes, restart_peak
from hayless.measure.process import answer
from hayless.measure.speed import Spread
from hayless.model.build import build_model, checked_device
from hayless.model.transform import apply
from hayless.train.attention import attention
from hayless.train.settings import TrainSettings
from hayless.train.slots import Objective
from hayless.train.step import update
from hayless.train.update import make_updater
from hayless.train.updater import Updater

STEPS = 3
"""Updates whose memory is looked at: the first one makes the optimizer's state."""
_TOY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 64,
}


class Trial(Options):
    """What is trained, and how.

    Methods are given as their own fields with `method`. Rows hold `documents` documents of equal length. `seconds`
    is about how long updates are timed after those whose memory is looked at; 0 times none.
    """

    config: dict[str, Any]
    dtype: str
    device: str
    settings: TrainSettings
    transforms: tuple[dict[str, Any], ...] = ()
    objective: dict[str, Any] = Field(default_factory=lambda: {"method": "lm"})
    optimizer: dict[str, Any] = Field(default_factory=lambda: {"method": "adamw"})
    memory: tuple[dict[str, Any], ...] = ()
    documents: int = 1
    seconds: float = 0.0


class Trained(BaseModel):
    """What a trial took.

    `phases` are peaks of bytes in use (on the CPU: resident, above what was held before the model). `weights_bytes` and
    so on are counted from live tensors; `other_bytes` are in use between updates and explained by none of them.
    `reserved_bytes` is the allocator's peak, `device_bytes` what the whole device had in use at the end (CUDA only).
    `times` are seconds of updates; `phase_seconds` of the phases of one update, waited for, and `host_seconds` the part
    of them in which the host was busy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    phases: dict[str, int]
    requested_bytes: int | None
    reserved_bytes: int | None
    reserved_now_bytes: int | None
    device_bytes: int | None
    weights_bytes: int
    buffers_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    master_bytes: int
    other_bytes: int | None
    parameters: int
    times: tuple[float, ...]
    phase_seconds: dict[str, float]
    host_seconds: dict[str, float]
    machine: Machine

    @property
    def peak_bytes(self) -> int:
        """The largest phase's."""
        return max(self.phases.values())

    @property
    def step_seconds(self) -> Spread | None:
        """Of an update, where updates were timed."""
        return Spread.of(self.times) if self.times else None


def run(trial: Trial) -> Trained:
    """Do it in this process. WorkError where memory runs out; raises what building and training raise."""
    device = checked_device(trial.device)
    if device.type == "cpu":
        _rehearse(trial)
    meter = MemoryMeter(device)
    with enough_memory("Give a smaller batch or a shorter sequence."), contextlib.ExitStack() as stack:
        model = build_model(trial.config, dtype=trial.dtype, device=device, draw_there=True)
        apply(model, configured(trial.transforms))
        meter.restart()
        work = stack.enter_context(ready(model, trial, batches(trial)))
        for _ in range(STEPS):
            work.watched()
        resting = _in_use(device)
        found = work.live()
        memory = meter.read()
        now = torch.cuda.memory_reserved(device) if device.type == "cuda" else None
        used = device_used_bytes(device)
        times = work.timed(trial.seconds)
    below = meter.baseline_bytes if device.type == "cpu" else 0
    return Trained(
        phases={phase: peak - below for phase, peak in work.peaks.items()},
        requested_bytes=work.requested,
        reserved_bytes=memory.reserved_bytes,
        reserved_now_bytes=now,
        device_bytes=used,
        other_bytes=None if resting is None else resting - sum(found[name] for name in _AT_REST),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        times=tuple(times),
        phase_seconds=work.seconds,
        host_seconds=work.host_seconds,
        machine=machine.describe(),
        **found,
    )


_AT_REST = ("weights_bytes", "buffers_bytes", "optimizer_bytes", "master_bytes")


@dataclass
class Ready:
    """A model ready to be updated, and the peaks of its phases so far."""

    model: PreTrainedModel
    objective: Objective
    updater: Updater
    pieces: Sequence[Batch]
    settings: TrainSettings
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    host_seconds: dict[str, float] = field(default_factory=dict)
    requested: int | None = None
    gradients: int = 0
    done: int = 0

    def step(self) -> None:
        """One update."""
        self.done += 1
        update(self.model, self.objective, self.updater, self.pieces, self.settings, step=self.done, share=1.0)

    def watched(self) -> None:
        """One update whose phases' peaks are noted."""
        with (
            self._phase(self.objective, "loss", "forward"),
            self._phase(self.updater, "backward", "backward"),
            self._phase(self.updater, "step", "step", self._count_gradients),
        ):
            self.seconds, self.host_seconds = {}, {}
            self.step()

    def timed(self, seconds: float) -> list[float]:
        """Seconds of each update, for about so long, at least three."""
        found: list[float] = []
        while seconds and (len(found) < 3 or sum(found) < seconds):
            _wait(self.model.device)
            start = time.perf_counter()
            self.step()
            _wait(self.model.device)
            found.append(time.perf_counter() - start)
        return found

    def live(self) -> dict[str, int]:
        """Bytes of what lives between updates, each storage once, and of the last update's gradients."""
        seen: set[int] = set()
        weights = _bytes(self.model.parameters(), seen)
        saved = self.model.state_dict()
        buffers = dict(self.model.named_buffers())
        weights += _bytes((buffer for name, buffer in buffers.items() if name in saved), seen)
        others = _bytes(buffers.values(), seen)
        masters = _bytes(self.updater.weights().values(), seen)
        # What is paged out lies in page-locked memory of the host.
        moments = _bytes((each for each in self.updater.optimizer_state()[0].values() if not each.is_pinned()), seen)
        return {
            "weights_bytes": weights,
            "buffers_bytes": others,
            "gradients_bytes": self.gradients,
            "optimizer_bytes": moments,
            "master_bytes": masters,
        }

    def _count_gradients(self) -> None:
        self.gradients = _bytes((each.grad for each in self.model.parameters() if each.grad is not None), set())

    @contextlib.contextmanager
    def _phase(self, owner: Any, method: str, name: str, before: Callable[[], None] = lambda: None) -> Iterator[None]:
        """While open, `owner.method` notes its peak as that of phase `name`."""
        plain, device = getattr(owner, method), self.model.device

        def noting(*inputs: Any, **options: Any) -> Any:
            before()
            _wait(device)
            restart_peak(device)
            start = time.perf_counter()
            found = plain(*inputs, **options)
            busy = time.perf_counter() - start
            _wait(device)
            for seconds, took in ((self.host_seconds, busy), (self.seconds, time.perf_counter() - start)):
                seconds[name] = seconds.get(name, 0.0) + took
            self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes(device))
            if device.type == "cuda":
                asked = int(torch.cuda.memory_stats(device)["requested_bytes.all.peak"])
                self.requested = max(self.requested or 0, asked)
            return found

        setattr(owner, method, noting)
        try:
            yield
        finally:
            delattr(owner, method)


@contextlib.contextmanager
def ready(model: PreTrainedModel, trial: Trial, pieces: Sequence[Batch]) -> Iterator[Ready]:
    """The model, cast and in training mode with its optimizer, to be updated by `pieces` while the context is open."""
    settings = trial.settings
    objective, optimizer = configured([trial.objective, trial.optimizer])
    updater = make_updater(model, settings.precision, optimizer)
    with contextlib.ExitStack() as stack:
        stack.callback(updater.close)
        stack.enter_context(attention(model, settings, packed=trial.documents > 1))
        for config in configured(trial.memory):
            stack.enter_context(method_of(config).load().install(model, config))
        model.train()
        yield Ready(model, method_of(objective).load()(objective), updater, pieces, settings)


def _rehearse(trial: Trial) -> None:
    """The same with a toy, for what libraries set up on first use."""
    settings = trial.settings.model_copy(update={"batch_size": 1, "micro_batch_size": None, "sequence_length": 8})
    toy = trial.model_copy(update={"transforms": (), "settings": settings, "config": _TOY, "documents": 1})
    with ready(build_model(_TOY, dtype=trial.dtype), toy, batches(toy)) as work:
        work.watched()


def batches(trial: Trial) -> list[Batch]:
    """Random tokens in documents of equal length, the same for every micro-batch."""
    settings = trial.settings
    rows, length = settings.micro_batch_size or settings.batch_size, settings.sequence_length
    entries, documents = dims_of(trial.config).vocab_size, trial.documents
    ids = torch.randint(entries, (rows, length), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(length) * documents // length).expand(rows, -1).contiguous()
    last = torch.cat([segments[:, 1:] != segments[:, :-1], torch.ones(rows, 1, dtype=torch.bool)], 1)
    targets = torch.cat([ids[:, 1:], ids[:, :1]], 1).masked_fill(last, IGNORED)
    first = torch.searchsorted(segments, segments)
    names = tuple(tuple(f"{row}.{document}" for document in range(documents)) for row in range(rows))
    return [Batch(ids, targets, torch.arange(length) - first, segments, names)] * settings.accumulation


def _bytes(tensors: Any, seen: set[int]) -> int:
    """Bytes of the storages of `tensors` that are not in `seen`, which gets them."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _in_use(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's side."""
    return run(Trial.model_validate(request)).model_dump(mode="json")


if __name__ == "__main__":
    answer(_answer)
