"""Rows of measured figures, and the files in `results/` they are written to."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hayless.core import atomic
from hayless.measure import machine
from hayless.measure.speed import Spread


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row is held to: a value, or a ratio against another contender at the same work and metric.

    Metrics with ratios are times: a ratio is the other's value over one's own.
    """

    op: Literal[">=", "<="]
    value: float | None = None
    against: str | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of one contender at one work. `note` says what a reader must know to compare it."""

    work: str
    contender: str
    metric: str
    unit: str
    spread: Spread
    goal: Goal | None = None
    note: str = ""


def write(path: Path, spec: str, rows: Sequence[Row]) -> None:
    """Write `rows` with this machine and its versions, and for each goal what was reached and whether it was met."""
    here = machine.describe().model_dump(mode="json", exclude_none=True)
    versions = {"python": here.pop("python"), **here.pop("versions")}
    content = {
        "spec": spec,
        "machine": here,
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": [_plain(row, rows) for row in rows],
    }
    atomic.write_json(path, content)


def _plain(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    figures = {"value": row.spread.median, "p20": row.spread.p20, "p80": row.spread.p80}
    plain: dict[str, Any] = {"work": row.work, "contender": row.contender, "metric": row.metric, "unit": row.unit}
    plain |= {name: float(f"{figure:.5g}") for name, figure in figures.items()}
    if row.note:
        plain["note"] = row.note
    goal = row.goal
    if goal is None:
        return plain
    reached, wanted = row.spread.median, goal.value
    if goal.against is not None:
        other = next(
            one for one in rows if (one.work, one.contender, one.metric) == (row.work, goal.against, row.metric)
        )
        reached, wanted = other.spread.median / row.spread.median, goal.ratio
        plain["goal"] = {"against": goal.against, "ratio": goal.ratio, "op": goal.op}
        plain["ratio"] = float(f"{reached:.4g}")
    else:
        plain["goal"] = {"value": goal.value, "op": goal.op}
    assert wanted is not None
    plain["met"] = reached >= wanted if goal.op == ">=" else reached <= wanted
    return plain
