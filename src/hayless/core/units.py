"""Numbers with units, read and written in one way.

GB is 10⁹ bytes and GiB is 2³⁰; the two are never mixed. Counts take k, M, B, T (10³, 10⁶, 10⁹, 10¹²).
"""

from __future__ import annotations

import re

from hayless.core.errors import bad_value

_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_COUNTS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_count(text: str | int | float, field: str = "count") -> int:
    """`"2M"` → 2000000. Integers pass through. Raises RequestError for anything that is not a whole count ≥ 0."""
    if isinstance(text, bool):
        raise bad_value(field, text, allowed="a whole number such as 500000, 500k or 2M")
    match = _NUMBER.fullmatch(str(text))
    if not match or match[2] not in _COUNTS:
        raise bad_value(field, text, allowed="a whole number such as 500000, 500k or 2M")
    value = float(match[1].replace("_", "")) * _COUNTS[match[2]]
    if not value.is_integer():
        raise bad_value(field, text, allowed="a whole number such as 500000, 500k or 2M")
    return int(value)


def parse_bytes(text: str | int, field: str = "memory") -> int:
    """`"24GB"` → 24·10⁹, `"24GiB"` → 24·2³⁰. A bare integer is bytes."""
    match = None if isinstance(text, bool) else _NUMBER.fullmatch(str(text))
    unit = (match[2] or "B") if match else ""
    if not match or unit not in _BYTES:
        raise bad_value(field, text, allowed="bytes with a unit, such as 24GB (10⁹) or 24GiB (2³⁰)")
    return int(float(match[1].replace("_", "")) * _BYTES[unit])


def format_bytes(count: float) -> str:
    """Bytes in decimal units with three significant digits: 1234567 → `1.23 MB`."""
    for unit in ("TB", "GB", "MB", "kB"):
        if abs(count) >= _BYTES[unit]:
            return f"{_three(count / _BYTES[unit])} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """Counts with three significant digits: 1234567 → `1.23M`."""
    for unit in ("T", "B", "M", "k"):
        if abs(count) >= _COUNTS[unit]:
            return f"{_three(count / _COUNTS[unit])}{unit}"
    return f"{count:.0f}" if float(count).is_integer() else f"{count:.3g}"


def format_seconds(seconds: float) -> str:
    """`75.3` → `1 min 15 s`; under a minute with one decimal; under a second in ms."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _three(value: float) -> str:
    digits = max(0, 2 - len(str(int(abs(value)))) + 1)
    return f"{value:.{digits}f}"
