"""How fast a model decodes or trains and how much memory that takes, each work in a fresh process.

The process first runs a toy, then notes what it holds, loads the model, restarts the peak and does the work: the peak
of memory is that of the work, weights included, loading and libraries not. A model may be a config alone: it then has
random weights, which compute as fast as learnt ones.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.core.families import dims_of, read_config
from hayless.core.measurement import Machine, Measurement
from hayless.core.options import Options
from hayless.core.registry import configured
from hayless.decode.engine import Engine
from hayless.measure import machine
from hayless.measure.memory import MemoryMeter, enough_memory
from hayless.measure.process import answer, in_fresh_process
from hayless.measure.rehearsal import rehearse_decoding, rehearse_training
from hayless.measure.rows import decode_rows, limit_row, rate_row, step_row, train_rows
from hayless.measure.settings import DecodeBench, TrainBench
from hayless.measure.speed import DecodeSpeed, decode_speed, train_speed
from hayless.model import adapters, checksums
from hayless.model.auto import MODEL_TYPE
from hayless.model.build import build_model, checked_device
from hayless.model.load import fetch_config, load_model
from hayless.model.source import local_folder
from hayless.model.tensors import has_weights
from hayless.model.transform import apply

_CONFIG = "config.json"
_OF_WEIGHTS = (adapters.CONFIG, checksums.NAME)
"""Files that stand beside weights: where one is and the weights are not, the folder is damaged."""


class Bench(BaseModel):
    """What was timed, and the rows that came out.

    `weight_bytes` are those of the parameters in memory. `backend` and `reason` say how a decoder was run and why so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weights: Literal["saved", "random"]
    device: str
    dtype: str
    parameters: int
    trained_parameters: int
    weight_bytes: int
    threads: int
    backend: str | None = None
    reason: str | None = None
    rows: tuple[Measurement, ...]
    machine: Machine

    def row(self, name: str) -> Measurement:
        """The row called `name`."""
        return next(row for row in self.rows if row.name == name)


class _Request(Options):
    """What the fresh process is asked; `transforms` are methods as their own fields, for random weights."""

    source: str
    random: bool
    device: str
    dtype: str | None
    transforms: tuple[dict[str, Any], ...] = ()
    decode: DecodeBench | None = None
    train: TrainBench | None = None


def bench(
    source: str,
    settings: DecodeBench | TrainBench,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    random: bool = False,
    timeout: float | None = None,
) -> Bench:
    """Time what `settings` describe on the model `source`: a folder, a hub id, or a config.json without weights.

    `dtype` is that of the weights (as stored if None). `random` takes random weights where there are others, too.
    Raises what loading and timing raise; WorkError when it takes more than `timeout` seconds.
    """
    work = {"decode" if isinstance(settings, DecodeBench) else "train": settings}
    request = _Request.model_validate({"source": source, "random": random, "device": device, "dtype": dtype, **work})
    found = in_fresh_process("hayless.measure.bench", request.model_dump(mode="json"), timeout)
    return Bench.model_validate(found)


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's side."""
    asked = _Request.model_validate(request)
    with enough_memory("Ask for a smaller batch, fewer tokens, or another dtype."):
        found = _decode(asked, asked.decode) if asked.decode else _train(asked, asked.train or TrainBench())
    return found.model_dump(mode="json", exclude={"rows": {"__all__": {"error"}}})


def _decode(asked: _Request, settings: DecodeBench) -> Bench:
    device = checked_device(asked.device)
    rehearse_decoding(device)
    meter = MemoryMeter(device)
    model, weights = _model(asked, device)
    prompts = _tokens(model, settings.batch_size, settings.prompt_tokens).tolist()
    meter.restart()
    speed = decode_speed(model, prompts, settings.tokens, settings.repeats, backend=settings.backend)
    rows = [*decode_rows(speed, meter.read()), rate_row("decode", speed.tokens_per_second)]
    size = Engine(model, backend=settings.backend).step_bytes(
        settings.prompt_tokens + settings.tokens // 2, settings.batch_size
    )
    with suppress(NotSupported):
        rows += [limit_row(size, machine.copy_bandwidth(device), speed)] if size is not None else []
    rows += [step_row(count, _step_speed(model, count, settings)) for count in _counts(settings.at_once)]
    about = _about(model, weights) | {"backend": speed.path.backend, "reason": speed.path.reason}
    return Bench(rows=tuple(rows), threads=speed.threads, **about)


def _counts(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << power for power in range(most.bit_length())]


def _step_speed(model: PreTrainedModel, rows: int, settings: DecodeBench) -> DecodeSpeed:
    prompts = _tokens(model, rows, settings.prompt_tokens).tolist()
    return decode_speed(model, prompts, settings.tokens, settings.repeats, backend=settings.backend)


def _train(asked: _Request, settings: TrainBench) -> Bench:
    device = checked_device(asked.device)
    rehearse_training(device)
    meter = MemoryMeter(device)
    model, weights = _model(asked, device)
    batch_bs = _tokens(model, settings.batch_size, settings.sequence_length)
    meter.restart()
    speed = train_speed(model, batch_bs, settings.steps)
    rows = [*train_rows(speed, meter.read()), rate_row("train", speed.tokens_per_second)]
    return Bench(rows=tuple(rows), threads=speed.threads, **_about(model, weights))


def _model(asked: _Request, device: torch.device) -> tuple[PreTrainedModel, Literal["saved", "random"]]:
    """The model to time, and where its weights come from."""
    path = Path(asked.source).expanduser()
    alone = path.name == _CONFIG and path.is_file()
    if not asked.random and not alone:
        folder = local_folder(asked.source)
        if has_weights(folder) or any((folder / name).is_file() for name in _OF_WEIGHTS):
            return load_model(asked.source, dtype=asked.dtype, device=device), "saved"
    config = read_config(path.parent) if alone else fetch_config(asked.source)
    if config.get("model_type") == MODEL_TYPE:
        raise NotSupported("A packed model is timed with the weights that it was packed with.", hint="Give its folder.")
    model = build_model(config, dtype=asked.dtype or dims_of(config).dtype, device=device, draw_there=True)
    apply(model, configured(asked.transforms))
    return model, "random"


def _tokens(model: PreTrainedModel, rows: int, length: int) -> torch.Tensor:
    """Random token ids (rows, length), the same each time."""
    return torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def _about(model: PreTrainedModel, weights: Literal["saved", "random"]) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "weights": weights,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "weight_bytes": sum(parameter.nbytes for parameter in parameters),
        "machine": machine.describe(),
    }


if __name__ == "__main__":
    answer(_measure)
