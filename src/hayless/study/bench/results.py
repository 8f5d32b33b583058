"""Rows of a benchmark, and the JSON file they are kept in.

A file has `spec`, `machine`, `versions`, `date` and `rows`. A row has `work`, `contender`, `metric`, `unit`, `value`,
`p20` and `p80`. A row that is compared with another contender's names it in `against` and says how many times better
it is in `ratio`, with the 95% interval `ratio_low` to `ratio_high` where it has repeats; one with a goal has `goal` and
`met`. A row without a value has the `reason`.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hayless.core import atomic
from hayless.core.measurement import Goal, Machine
from hayless.measure import machine
from hayless.measure.speed import Spread
from hayless.study.bench.timing import ratio

FIELDS = ("spec", "machine", "versions", "date", "rows")


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of one contender at one work; None where there is none, for `reason`.

    `samples` are the repeats that the spread is of, `paired` where they were taken in rounds with other contenders'.
    `against` is whom it is compared with where the goal names nobody. `note` says what a reader must know.
    """

    work: str
    contender: str
    metric: str
    unit: str
    spread: Spread | None
    goal: Goal | None = None
    note: str = ""
    better: Literal["lower", "higher"] = "lower"
    reason: str = ""
    samples: tuple[float, ...] = ()
    paired: bool = False
    against: str | None = None

    @classmethod
    def single(
        cls, work: str, contender: str, metric: str, unit: str, value: float, goal: Goal | None = None, note: str = ""
    ) -> Row:
        """The row of a figure that was not repeated."""
        return cls(work, contender, metric, unit, Spread.single(value), goal, note)


def write(path: Path, spec: str, rows: Sequence[Row], *, on: Machine | None = None) -> None:
    """Write `rows` with the machine they were measured on (this one if not given) and its versions, and for each goal
    what was reached and whether it was met."""
    here = (on or machine.describe()).model_dump(mode="json", exclude_none=True)
    versions = {"python": here.pop("python"), **here.pop("versions")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = (spec, here, versions, today, [plain(row, rows) for row in rows])
    atomic.write_json(path, dict(zip(FIELDS, content, strict=True)))


def plain(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A row as it stands in the file; `rows` are those it may be compared with."""
    found: dict[str, Any] = {"work": row.work, "contender": row.contender, "metric": row.metric, "unit": row.unit}
    figures = (row.spread.median, row.spread.p20, row.spread.p80) if row.spread else (None, None, None)
    found |= {name: _digits(figure, 5) for name, figure in zip(("value", "p20", "p80"), figures, strict=True)}
    found |= {name: text for name, text in (("note", row.note), ("reason", row.reason)) if text}
    goal = row.goal
    against = goal.against if goal and goal.against else row.against
    reached: float | None = figures[0]
    if against is not None and against != row.contender:
        found["against"] = against
        compared = _ratio(row, _other(row, against, rows))
        reached = compared.get("ratio")
        found |= {name: _digits(value, 4) for name, value in compared.items()}
    if goal is not None:
        wanted = goal.value if goal.against is None else goal.ratio
        reached = figures[0] if goal.against is None else reached
        assert wanted is not None, "a goal has a value, or a ratio against somebody"
        found["goal"] = goal.model_dump(exclude_none=True)
        found["met"] = reached is not None and (reached >= wanted if goal.op == ">=" else reached <= wanted)
    return found


def _other(row: Row, contender: str, rows: Sequence[Row]) -> Row | None:
    named = [one for one in rows if (one.work, one.contender, one.metric) == (row.work, contender, row.metric)]
    return named[0] if named else None


def _ratio(row: Row, other: Row | None) -> dict[str, float]:
    """How many times better `row` is than `other`; nothing where either has no value."""
    if row.spread is None or other is None or other.spread is None or 0 in (row.spread.median, other.spread.median):
        return {}
    above, below = (other, row) if row.better == "lower" else (row, other)
    assert above.spread is not None and below.spread is not None
    if not above.samples or not below.samples:
        return {"ratio": above.spread.median / below.spread.median}
    value, low, high = ratio(above.samples, below.samples, paired=row.paired and other.paired)
    return {"ratio": value, "ratio_low": low, "ratio_high": high}


def _digits(value: float | None, count: int) -> float | None:
    return None if value is None else float(f"{value:.{count}g}")
