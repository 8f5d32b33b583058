"""What the tables of `hayless plan` are made of: records for programs, cells for people, and a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

from hayless.core.errors import bad_value


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `cells` of text under `columns`, the same as `records` with units in their names, and remarks.

    `source` says who published the figures beside which ours stand; it is empty where nothing is published.
    """

    title: str
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the cells."""
        return {"title": self.title, "source": self.source, "rows": list(self.records), "notes": list(self.notes)}


def as_printed(value: Fraction | float, printed: str) -> str:
    """How a value gives a printed cell: `rounded` (halves up), `cut` (digits dropped), or `differs`."""
    exact = Decimal(value.numerator) / Decimal(value.denominator) if isinstance(value, Fraction) else Decimal(value)
    cell = Decimal(printed)
    digit = Decimal(1).scaleb(int(cell.as_tuple().exponent))
    for how, rounding in (("rounded", ROUND_HALF_UP), ("cut", ROUND_DOWN)):
        if exact.quantize(digit, rounding) == cell:
            return how
    return "differs"


def beside(ours: str, value: Fraction | float, printed: str) -> str:
    """Our figure and what is printed: `896 =`, `41.25 = 41.3`, `513.5 (printed 513, cut)`."""
    how = as_printed(value, printed)
    if ours.replace(",", "") == printed:
        return f"{ours} ="
    return f"{ours} = {printed}" if how == "rounded" else f"{ours} (printed {printed}{', cut' * (how == 'cut')})"


def whole(field: str, value: int, least: int = 1) -> int:
    """`value` where it is at least `least`; RequestError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise bad_value(field, value, allowed=f"a whole number of at least {least}")
    return value


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many digits and no exponent: 0.1171875 → `0.117`, 16000 → `16,000`."""
    if value == 0:
        return "0"
    places = digits - 1 - Decimal(value).adjusted()
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def wholes(field: str, text: str) -> Sequence[int]:
    """`1,4,16` → its numbers, each at least 1."""
    found = []
    for part in text.split(","):
        if not part.strip().isdigit() or int(part) < 1:
            raise bad_value(field, text, allowed="whole numbers of at least 1, such as 1,4,16")
        found.append(int(part))
    return list(dict.fromkeys(found))
