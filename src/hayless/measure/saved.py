"""What a saved model is worth: the folder is loaded in a fresh process and measured there, as the files that ship.

One process measures everything. Decoding comes first, right after loading, and the peak is restarted between the two
where the system allows it, so neither loading nor the larger batches of quality are in the peak of decoding.
"""

from __future__ import annotations

import time
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.measurement import Measurement
from hayless.core.options import Options
from hayless.core.units import format_bytes
from hayless.data.batches import one_pass
from hayless.data.store import StoredDocument, TokenStore
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.measure.energy import EnergyMeter
from hayless.measure.files import file_bytes
from hayless.measure.interval import Interval
from hayless.measure.memory import MemoryMeter
from hayless.measure.process import answer, in_fresh_process
from hayless.measure.quality import Document, Drift, Quality, batch_drift, quality, window_size
from hayless.measure.rehearsal import rehearse_decoding
from hayless.measure.reward import reward_accuracy
from hayless.measure.rows import decode_rows
from hayless.measure.settings import MeasureSettings
from hayless.measure.speed import decode_speed
from hayless.model.load import load_model

_ENERGY_SECONDS = 2.0
"""How long is generated while energy is read: NVML's counter is too coarse for less."""


class _Request(Options):
    """What the fresh process is asked."""

    folder: Path
    heldout: Path
    settings: MeasureSettings
    device: str


def measure_saved(
    folder: Path,
    heldout: TokenStore,
    settings: MeasureSettings,
    *,
    device: str = "cpu",
    documents: Path | None = None,
    timeout: float | None = None,
) -> list[Measurement]:
    """Measure the model saved in `folder` on held-out documents, in a fresh process on `device`.

    A store of preferences is for a reward model (pairwise accuracy), any other for a language model (loss, bits per
    byte, perplexity). `documents` is where the loss of each document is written as JSON, for paired comparisons.
    Raises what loading and measuring raise; WorkError when it takes more than `timeout` seconds.
    """
    request = _Request(folder=folder.resolve(), heldout=heldout.folder.resolve(), settings=settings, device=str(device))
    found = in_fresh_process("hayless.measure.saved", request.model_dump(mode="json"), timeout)
    if documents is not None and found["documents"]:
        atomic.write_json(documents, found["documents"])
    return [Measurement.model_validate(row) for row in found["rows"]]


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's side: rows, and the losses of documents."""
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
        meter.restart()
        rows += _decode_rows(model, store, settings, meter)
    if settings.quality and rewards:
        rows.append(_reward_row(model, store, settings))
    elif settings.quality:
        sample = [as_document(document) for document in store.sample(settings.heldout_tokens)]
        found = quality(
            model,
            sample,
            begin=store.begin,
            context=settings.context,
            stride=settings.stride,
            batch_size=settings.batch_size,
        )
        rows += _quality_rows(found)
        if settings.drift_tokens:
            tokens, size = settings.drift_tokens, settings.batch_size
            rows.append(
                _drift_row(batch_drift(model, sample, found, begin=store.begin, batch_size=size, tokens=tokens))
            )
        documents = [document.model_dump() for document in found.documents]
    return {"rows": [row.model_dump(mode="json", exclude={"error"}) for row in rows], "documents": documents}


def as_document(stored: StoredDocument) -> Document:
    """A document of a store as `quality` takes it: what the store marks as learnt is what counts."""
    return Document(stored.id, torch.from_numpy(stored.tokens), stored.bytes, torch.from_numpy(stored.trained))


def _decode_rows(
    model: PreTrainedModel, store: TokenStore, settings: MeasureSettings, meter: MemoryMeter
) -> list[Measurement]:
    tokens = chain.from_iterable(document.tokens.tolist() for document in store.sample(settings.heldout_tokens))
    prompt = list(islice(tokens, settings.prompt_tokens))
    speed = decode_speed(model, [prompt], settings.decode_tokens)
    return [*decode_rows(speed, meter.read()), _energy_row(model, prompt, settings.decode_tokens)]


def _energy_row(model: PreTrainedModel, prompt: list[int], tokens: int) -> Measurement:
    """Joules of the whole device for each generated token, prompts included; the reason where there is no figure."""
    name, unit = "joules_per_token", "J/token"
    meter = EnergyMeter(model.device)
    if not meter.available:
        return Measurement(name=name, unit=unit, note=meter.reason, better="lower")
    engine, options = Engine(model), SamplingOptions(max_tokens=tokens, ignore_end=True)
    generated, start = 0, time.perf_counter()
    with meter:
        while time.perf_counter() - start < _ENERGY_SECONDS:
            engine.generate([prompt], options)
            generated += tokens
    if meter.joules is None:
        return Measurement(name=name, unit=unit, note=meter.reason, better="lower")
    note = f"{meter.joules:.0f} J of the whole device, idle power included, over {generated} tokens"
    return Measurement(name=name, unit=unit, value=meter.joules / generated, note=note, better="lower")


def _quality_rows(found: Quality) -> list[Measurement]:
    note = f"{found.tokens} tokens of {len(found.documents)} documents, context {found.context}, stride {found.stride}"
    if found.too_short:
        note += f"; {found.too_short} documents have no token to predict"
    rows = [
        _interval("bits_per_byte", "bits/byte", found.bits_per_byte, note),
        _interval("loss", "nats/token", found.loss, note),
    ]
    if found.perplexity is None:
        return [*rows, Measurement(name="perplexity", unit="", note="too large for a number", better="lower")]
    return [*rows, _interval("perplexity", "", found.perplexity, note)]


def _drift_row(found: Drift) -> Measurement:
    sizes = " and ".join(str(size) for size in found.batch_sizes)
    note = f"loss in batches of {sizes} windows, {found.documents} documents; {found.largest:.1e} in one of them"
    return Measurement(name="batch_drift", unit="nats/token", value=found.loss, note=note)


def _reward_row(model: PreTrainedModel, store: TokenStore, settings: MeasureSettings) -> Measurement:
    context, _ = window_size(model, settings.context, None)
    batches = one_pass(store, sequence_length=context, rows=2 * settings.batch_size, max_tokens=settings.heldout_tokens)
    found = reward_accuracy(model, batches)
    return Measurement(
        name="pairwise_accuracy", unit="", value=found.value, low=found.low, high=found.high, better="higher"
    )


def _file_rows(folder: Path) -> list[Measurement]:
    found = file_bytes(folder)
    note = f"safetensors; all files of the folder: {format_bytes(found.total)}"
    rows = [Measurement(name="file_bytes", unit="B", value=found.tensors, note=note, better="lower")]
    if found.adapter:
        note = "what is added to the base, which is counted in file_bytes too"
        rows.append(Measurement(name="adapter_bytes", unit="B", value=found.adapter, note=note, better="lower"))
    return rows


def _interval(name: str, unit: str, found: Interval, note: str) -> Measurement:
    return Measurement(
        name=name, unit=unit, value=found.value, low=found.low, high=found.high, note=note, better="lower"
    )


if __name__ == "__main__":
    answer(_measure)
