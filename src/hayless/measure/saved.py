"""What a saved model is worth: the folder is loaded in a fresh process and measured there, as the files that ship.

One process measures everything. Decoding comes first, right after loading, and the peak is restarted between the two
where the system allows it, so neither loading nor the larger batches of quality are in the peak of decoding.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.errors import RequestError
from hayless.core.measurement import Measurement
from hayless.core.method import MethodConfig
from hayless.core.options import Options
from hayless.core.registry import configured, method_of
from hayless.core.units import format_bytes
from hayless.data.store import TokenStore
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.slots import CachePart, DraftPart, ExitPart
from hayless.measure.calibration import Calibration, write
from hayless.measure.energy import EnergyMeter
from hayless.measure.files import file_bytes
from hayless.measure.heldout import look, sampled
from hayless.measure.memory import MemoryMeter
from hayless.measure.process import answer, in_fresh_process
from hayless.measure.quality import Quality, batch_drift
from hayless.measure.rehearsal import rehearse_decoding
from hayless.measure.rows import decode_rows, held_out_rows
from hayless.measure.settings import MeasureSettings
from hayless.measure.speed import decode_speed
from hayless.model.load import load_model, load_tokenizer

_ENERGY_SECONDS = 2.0
"""How long is generated while energy is read: NVML's counter is too coarse for less."""


class _Request(Options):
    """What the fresh process is asked."""

    folder: Path
    heldout: Path
    settings: MeasureSettings
    decoding: dict[str, Any] | None = None
    device: str


def measure_saved(
    folder: Path,
    heldout: TokenStore,
    settings: MeasureSettings,
    *,
    decoding: MethodConfig | None = None,
    device: str = "cpu",
    documents: Path | None = None,
    reliability: Path | None = None,
    timeout: float | None = None,
) -> list[Measurement]:
    """Measure the model saved in `folder` on held-out documents, in a fresh process on `device`.

    It is decoded with the method `decoding` in its slot, if there is one.
    A store of preferences is for a reward model (pairwise accuracy, calibration), any other for a language model (loss,
    bits per byte, perplexity; on outputs of examples also accuracy and calibration). `documents` is where the loss of
    each document is written as JSON, for paired comparisons; `reliability` a folder for the reliability diagram.
    Raises what loading and measuring raise; WorkError when it takes more than `timeout` seconds.
    """
    request = _Request(
        folder=folder.resolve(),
        heldout=heldout.folder.resolve(),
        settings=settings,
        decoding=decoding.model_dump(mode="json") if decoding else None,
        device=str(device),
    )
    found = in_fresh_process("hayless.measure.saved", request.model_dump(mode="json"), timeout)
    if documents is not None and found["documents"]:
        atomic.write_json(documents, found["documents"])
    if reliability is not None and found["calibration"]:
        what = "pairs" if heldout.kind == "preference" else "tokens"
        write(Calibration.model_validate(found["calibration"]), what, reliability)
    return [Measurement.model_validate(row) for row in found["rows"]]


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's side: rows, the losses of documents, and the calibration."""
    asked = _Request.model_validate(request)
    settings, device = asked.settings, torch.device(asked.device)
    store = TokenStore(asked.heldout, verify=False)
    rewards = store.kind == "preference"
    decodes = settings.decode and not rewards
    if decodes:
        rehearse_decoding(asked.device)
        meter = MemoryMeter(device)
    model = load_model(str(asked.folder), device=asked.device, task="reward" if rewards else "causal")
    rows = _file_rows(asked.folder)
    documents: list[dict[str, Any]] = []
    if decodes:
        parts = _parts(asked, model)
        meter.restart()
        rows += _decode_rows(model, store, settings, meter, parts)
    calibrated: Calibration | None = None
    if settings.quality:
        found = look(model, store, settings)
        rows += held_out_rows(found)
        calibrated = found.calibration
        if isinstance(found, Quality):
            if settings.drift_tokens:
                rows.append(_drift_row(model, store, settings, found))
            documents = [document.model_dump() for document in found.documents]
    return {
        "rows": [row.model_dump(mode="json", exclude={"error"}) for row in rows],
        "documents": documents,
        "calibration": calibrated.model_dump() if calibrated else None,
    }


@dataclass(frozen=True, slots=True)
class _Parts:
    """What fills the engine's slots."""

    draft: DraftPart | None = None
    exit: ExitPart | None = None
    cache: CachePart | None = None


def _parts(asked: _Request, model: PreTrainedModel) -> _Parts:
    """The method of decoding, ready for the model, in its slot."""
    if asked.decoding is None:
        return _Parts()
    [config] = configured([asked.decoding])
    try:
        tokenizer = load_tokenizer(str(asked.folder))
    except RequestError:
        tokenizer = None
    card = method_of(config)
    return _Parts(**{card.part.value: card.load()(config, model, tokenizer)})


def _decode_rows(
    model: PreTrainedModel, store: TokenStore, settings: MeasureSettings, meter: MemoryMeter, parts: _Parts
) -> list[Measurement]:
    tokens = chain.from_iterable(document.tokens.tolist() for document in store.sample(settings.heldout_tokens))
    prompt = list(islice(tokens, settings.prompt_tokens))
    speed = decode_speed(model, [prompt], settings.decode_tokens, draft=parts.draft, exit=parts.exit, cache=parts.cache)
    return [*decode_rows(speed, meter.read()), _energy_row(model, prompt, settings.decode_tokens, parts)]


def _energy_row(model: PreTrainedModel, prompt: list[int], tokens: int, parts: _Parts) -> Measurement:
    """Joules of the whole device for each generated token, prompts included; the reason where there is no figure."""
    name, unit = "joules_per_token", "J/token"
    meter = EnergyMeter(model.device)
    if not meter.available:
        return Measurement(name=name, unit=unit, note=meter.reason, better="lower")
    engine = Engine(model, draft=parts.draft, exit=parts.exit, cache=parts.cache)
    options = SamplingOptions(max_tokens=tokens, ignore_end=True)
    generated, start = 0, time.perf_counter()
    with meter:
        while time.perf_counter() - start < _ENERGY_SECONDS:
            engine.generate([prompt], options)
            generated += tokens
    if meter.joules is None:
        return Measurement(name=name, unit=unit, note=meter.reason, better="lower")
    note = f"{meter.joules:.0f} J of the whole device, idle power included, over {generated} tokens"
    return Measurement(name=name, unit=unit, value=meter.joules / generated, note=note, better="lower")


def _drift_row(model: PreTrainedModel, store: TokenStore, settings: MeasureSettings, quality: Quality) -> Measurement:
    tokens, size = settings.drift_tokens, settings.batch_size
    found = batch_drift(model, sampled(store, settings), quality, begin=store.begin, batch_size=size, tokens=tokens)
    sizes = " and ".join(str(size) for size in found.batch_sizes)
    note = f"loss in batches of {sizes} windows, {found.documents} documents; {found.largest:.1e} in one of them"
    return Measurement(name="batch_drift", unit="nats/token", value=found.loss, note=note)


def _file_rows(folder: Path) -> list[Measurement]:
    found = file_bytes(folder)
    note = f"safetensors; all files of the folder: {format_bytes(found.total)}"
    rows = [Measurement(name="file_bytes", unit="B", value=found.tensors, note=note, better="lower")]
    if found.adapter:
        note = "what is added to the base, which is counted in file_bytes too"
        rows.append(Measurement(name="adapter_bytes", unit="B", value=found.adapter, note=note, better="lower"))
    return rows


if __name__ == "__main__":
    answer(_measure)
