"""How figures are called and written, wherever they are shown: cards, pictures, tables, pages. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hayless.core.measurement import Measurement
from hayless.core.units import format_bytes, format_count, format_seconds

TITLES = {
    "bits_per_byte": "Bits per byte",
    "loss": "Loss",
    "perplexity": "Perplexity",
    "batch_drift": "Batch-size drift",
    "pairwise_accuracy": "Pairwise accuracy",
    "token_accuracy": "Token accuracy",
    "calibration_error": "Calibration error",
    "brier_score": "Brier score",
    "preference_loss": "Preference loss",
    "train_peak_bytes": "Training peak",
    "decode_peak_bytes": "Decoding peak",
    "decode_process_peak_bytes": "Decoding process",
    "file_bytes": "File size",
    "adapter_bytes": "Adapter alone",
    "parameters": "Parameters",
    "trainable_parameters": "Trainable parameters",
    "nonzero_parameters": "Non-zero parameters",
    "train_seconds": "Training time",
    "train_tokens_per_second": "Training speed",
    "first_token_seconds": "First token",
    "ms_per_token": "Decoding time",
    "joules_per_token": "Energy",
}
"""Measurement name → title, in the order in which figures are shown."""

_UNITS = {
    "bits_per_byte": "bits/byte",
    "loss": "nats/token",
    "batch_drift": "nats/token",
    "preference_loss": "nats/pair",
    "train_tokens_per_second": "tokens/s",
    "ms_per_token": "ms/token",
    "joules_per_token": "J/token",
}


def title(name: str) -> str:
    """`train_peak_bytes` → `Training peak`; a name without a title is shown in plain words."""
    return TITLES.get(name) or name.replace("_", " ").capitalize()


def unit_of(name: str) -> str:
    """The unit a figure is written in, or an empty string where the written figure carries its own (bytes, seconds)."""
    return _UNITS.get(name, "")


def written(name: str, value: float | None, unit: str = "") -> str:
    """A figure with its unit as people write it: 1234567 bytes → `1.23 MB`; None → an empty string.

    The kind of figure is read from its name (`_bytes`, `_seconds`, `parameters`); others get four significant digits
    and their unit.
    """
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_seconds") and value >= 0:
        return format_seconds(value)
    if name.endswith("parameters"):
        return format_count(value)
    unit = _UNITS.get(name, unit)
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Four significant digits without an exponent where people would not write one: 12345.6 → `12,346`."""
    if value and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3e}"
    digits = 4 - len(str(int(abs(value)))) if abs(value) >= 1 else 4
    return f"{value:,.{max(0, digits)}f}"


def in_order(rows: Iterable[Measurement]) -> list[Measurement]:
    """Rows in the order of `TITLES`; names it does not have follow in their own order."""
    order = {name: position for position, name in enumerate(TITLES)}
    return sorted(rows, key=lambda row: order.get(row.name, len(order)))


def percent(ratio: float) -> str:
    """A signed share: 0.0312 → `+3.1 %`; large ones as a factor: 3.2 → `×4.2`; under 0.001 % `±0 %`."""
    if ratio >= 2:
        return f"×{1 + ratio:.3g}"
    if abs(ratio) < 1e-5:
        return "±0 %"
    digits = 1 if abs(ratio) >= 0.001 else 3
    return f"{ratio:+.{digits}%}".replace("%", " %").replace("-", "−")
