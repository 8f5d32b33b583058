"""Quality, timings and memory as rows of measurements, under the names that runs and benchmarks share."""

from __future__ import annotations

from typing import Literal

from hayless.core.measurement import Measurement
from hayless.core.units import format_bytes
from hayless.measure.calibration import Calibration
from hayless.measure.interval import Interval
from hayless.measure.memory import Memory
from hayless.measure.quality import Quality
from hayless.measure.reward import Ranking
from hayless.measure.speed import DecodeSpeed, Spread, TrainSpeed


def held_out_rows(found: Quality | Ranking) -> list[Measurement]:
    """What a model is worth on held-out documents."""
    if isinstance(found, Ranking):
        note = f"{len(found.pairs)} pairs"
        return [
            _interval("pairwise_accuracy", "", found.accuracy, note, better="higher"),
            _calibration_row(found.calibration),
            _interval("brier_score", "", found.brier, note),
            _interval("preference_loss", "nats/pair", found.loss, note),
        ]
    note = f"{found.tokens} tokens of {len(found.documents)} documents, context {found.context}, stride {found.stride}"
    if found.too_short:
        note += f"; {found.too_short} documents have no token to predict"
    rows = [
        _interval("bits_per_byte", "bits/byte", found.bits_per_byte, note),
        _interval("loss", "nats/token", found.loss, note),
    ]
    if found.perplexity is None:
        rows.append(Measurement(name="perplexity", unit="", note="too large for a number", better="lower"))
    else:
        rows.append(_interval("perplexity", "", found.perplexity, note))
    if found.token_accuracy and found.calibration:
        rows.append(_interval("token_accuracy", "", found.token_accuracy, note, better="higher"))
        rows.append(_calibration_row(found.calibration))
    return rows


def decode_rows(speed: DecodeSpeed, memory: Memory) -> list[Measurement]:
    """Time to the first token and of each later one, and the peak while decoding."""
    side = "one at a time" if speed.rows == 1 else f"{speed.rows} side by side"
    work = f"{speed.tokens} tokens after {speed.prompt_tokens}, {side}, {speed.threads} threads"
    work += f"; drafts by {speed.drafts}" if speed.drafts else ""
    work += f"; exits by {speed.exits}" if speed.exits else ""
    work += f"; cache in {speed.cache}" if speed.cache else ""
    return [
        _timing("first_token_seconds", "s", speed.first_token, work),
        _timing("ms_per_token", "ms", speed.token.scaled(1000), work),
        *_memory_rows("decode", memory),
    ]


def train_rows(speed: TrainSpeed, memory: Memory) -> list[Measurement]:
    """Time of a step, and the peak while training."""
    work = f"{speed.tokens} tokens a step, {speed.steps} steps with AdamW, {speed.threads} threads"
    return [
        _timing("step_seconds", "s", speed.step, work),
        *_memory_rows("train", memory),
    ]


def rate_row(work: str, spread: Spread) -> Measurement:
    """Tokens a second of a whole batch; `work` is decode or train."""
    return Measurement(
        name=f"{work}_tokens_per_second",
        unit="tokens/s",
        value=spread.median,
        low=spread.p20,
        high=spread.p80,
        better="higher",
    )


def limit_row(step_bytes: int, bytes_per_second: float, speed: DecodeSpeed) -> Measurement:
    """The least time of a step, all that it must read taken at the rate of a copy, over the time it took."""
    least = step_bytes / bytes_per_second
    note = f"{format_bytes(step_bytes)} a step at {format_bytes(int(bytes_per_second))}/s, the rate of a copy"
    share = speed.token.rate(least)
    return Measurement(
        name="share_of_bandwidth_limit", unit="", value=share.median, low=share.p20, high=share.p80, note=note,
        better="higher",
    )  # fmt: skip


def step_row(rows: int, speed: DecodeSpeed) -> Measurement:
    """Time of a step of so many rows at once."""
    return _timing(f"step_{rows}_rows_ms", "ms", speed.token.scaled(1000), f"{speed.prompt_tokens} tokens before, each")


def _memory_rows(work: str, memory: Memory) -> list[Measurement]:
    reserved = f"; {format_bytes(memory.reserved_bytes)} reserved" if memory.reserved_bytes is not None else ""
    peak = f"{memory.note}{reserved}; {format_bytes(memory.baseline_bytes)} were held before the model"
    return [
        Measurement(name=f"{work}_peak_bytes", unit="B", value=memory.model_bytes, note=peak, better="lower"),
        Measurement(name=f"{work}_process_peak_bytes", unit="B", value=memory.peak_bytes, note=memory.note),
    ]


def _timing(name: str, unit: str, spread: Spread, note: str) -> Measurement:
    return Measurement(
        name=name, unit=unit, value=spread.median, low=spread.p20, high=spread.p80, note=note, better="lower"
    )


def _calibration_row(found: Calibration) -> Measurement:
    return _interval("calibration_error", "", found.error, found.note)


def _interval(
    name: str, unit: str, found: Interval, note: str, better: Literal["lower", "higher"] = "lower"
) -> Measurement:
    return Measurement(
        name=name, unit=unit, value=found.value, low=found.low, high=found.high, note=note, better=better
    )
