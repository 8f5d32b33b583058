"""A study as one HTML file, which works offline (`hayless.core.page`).

Text from runs (labels, samples, errors) is data from elsewhere, and stays text.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hayless.core import atomic
from hayless.core import page as pages
from hayless.core.errors import RequestError
from hayless.core.measurement import Measurement
from hayless.core.registry import catalogue, find
from hayless.recipe.figures import TITLES, in_order, percent, title, unit_of, written
from hayless.recipe.receipt import machine_words, measured_cell, predicted_cell
from hayless.recipe.receipt_picture import ratio, reach, ticks
from hayless.study.record import MOST_POINTS, RunRecord, thinned
from hayless.study.table import HIGHER_IS_BETTER, QUALITY, Row, Table, difference_text, paired, summary
from hayless.train.settings import RESUMABLE
from hayless.version import __version__

_SCRIPTS = ("base.js", "table.js", "plot.js", "curves.js", "compare.js")
_MOST_PAIRED = 30
_ALL_POINTS = 60_000
"""Points of all curves together, so that a page of many runs stays small."""
_PNG = b"\x89PNG\r\n\x1a\n"
_NEITHER = frozenset({"parameters", "trainable_parameters", "nonzero_parameters", "batch_drift"})


def write(
    table: Table,
    out: Path,
    *,
    name: str,
    budget: str = "",
    picture: bytes | None = None,
    picture_caption: str = "One image with 256, 16 and 4 colours chosen by k-means, and the error of each.",
) -> None:
    """Write the page of `table` to `out`.

    `budget` says in words what every run could spend; `picture` is a PNG shown with its caption. RequestError for a
    picture that is no PNG, WorkError when the file cannot be written.
    """
    atomic.write_text(out, render(table, name=name, budget=budget, picture=picture, picture_caption=picture_caption))


def render(
    table: Table, *, name: str, budget: str = "", picture: bytes | None = None, picture_caption: str = ""
) -> str:
    """The page as text; see `write`."""
    if picture is not None and not picture.startswith(_PNG):
        raise RequestError("The picture of the page is no PNG.")
    axes = table.columns
    common = (
        set.intersection(*(set(row.record.receipt.changes) for row in table.rows)) if len(table.rows) > 1 else set()
    )
    has_curves = any(row.record.curves for row in table.rows)
    sections = [
        *([("tradeoff", "Trade-off")] if axes else []),
        ("results", "Results"),
        *([("compare", "Compare")] if len(table.rows) > 1 else []),
        *([("training", "Training")] if has_curves else []),
        ("receipts", "Receipts"),
        *([("picture", "Palette")] if picture else []),
        ("method", "How to read this"),
    ]
    return pages.render(
        pages.text("hayless.study", "page.html.j2"),
        _data(table, name),
        style=pages.text("hayless.study", "page.css"),
        script="\n".join(pages.text("hayless.study", each) for each in _SCRIPTS),
        title=name,
        version=__version__,
        byline=_byline(table, budget),
        summary=summary(table),
        sections=sections,
        plottable=bool(axes),
        columns=[{"name": name, "title": title(name), "unit": unit_of(name)} for name in axes],
        quality=QUALITY,
        baseline=table.baseline,
        runs=[_run(row, common) for row in table.rows],
        table_note=_table_note(table),
        has_curves=has_curves,
        picture=base64.b64encode(picture).decode() if picture else None,
        picture_caption=picture_caption,
        machines=sorted({found for row in table.rows if (found := _machine(row.record))}),
    )


def _data(table: Table, name: str) -> dict[str, Any]:
    """What the page's script works on."""
    measurements: dict[str, Measurement] = {}
    for row in table.rows:
        for found in row.record.receipt.rows:
            measurements.setdefault(found.name, found)
    curves = sum(len(row.record.curves) for row in table.rows)
    most_points = min(MOST_POINTS, max(40, _ALL_POINTS // max(1, curves)))
    return {
        "name": name,
        "quality": QUALITY,
        "baseline": table.baseline,
        "axes": table.columns,
        "measurements": {
            found.name: {
                "title": title(found.name),
                "unit": unit_of(found.name) or ("" if found.name in TITLES else found.unit),
                "better": _better(found),
            }
            for found in in_order(measurements.values())
        },
        "runs": [_run_data(row, most_points) for row in table.rows],
        "pairs": _pairs([row.record for row in table.rows]),
        "methods": _methods(table),
        "aside": sorted(RESUMABLE),
    }


def _methods(table: Table) -> dict[str, dict[str, str]]:
    """What the methods of all recipes do and where they were published, in the words of their cards."""
    names = {name for row in table.rows for name in _method_names(row.record.recipe)}
    return {
        name: {"summary": card.summary, "paper": str(card.paper or "")}
        for name in sorted(names & set(catalogue()))
        for card in [find(name)]
    }


def _method_names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(name := value.get("method"), str):
            yield name
        value = list(value.values())
    for inner in value if isinstance(value, list | tuple) else ():
        yield from _method_names(inner)


def _run_data(row: Row, most_points: int) -> dict[str, Any]:
    receipt = row.record.receipt
    parts = ("value", "low", "high", "predicted", "published")
    return {
        "label": row.label,
        "peer": receipt.peer,
        "state": receipt.state,
        "failed": row.record.failed,
        "reason": row.record.reason,
        "remark": row.remark,
        "rank": row.rank,
        "difference": row.difference.model_dump() if row.difference else None,
        "changes": list(receipt.changes),
        "figures": {found.name: {part: getattr(found, part) for part in parts} for found in receipt.rows},
        "curves": {
            metric: [[step, float(f"{value:.6g}")] for step, value in thinned(points, most_points)]
            for metric, points in row.record.curves.items()
        },
        "recipe": row.record.recipe_text,
        "plain": _plain(row.record.recipe),
    }


def _plain(value: Any) -> Any:
    """Recipe data as JSON can hold it: dates and the like as text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _pairs(records: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """Paired differences in quality (earlier row minus later) of the first few dozen runs with losses by document."""
    found = {}
    measured = [(index, record) for index, record in enumerate(records) if record.documents and not record.failed]
    for (i, one), (j, other) in itertools.combinations(measured[:_MOST_PAIRED], 2):
        try:
            difference = paired(one, other)
        except RequestError:
            continue
        found[f"{i},{j}"] = [difference.value, difference.low, difference.high]
    return found


def _run(row: Row, common: set[str]) -> dict[str, Any]:
    """What the template shows of a run; steps `common` to all runs are left out of the table of results."""
    record, receipt = row.record, row.record.receipt
    limit = reach(receipt.rows)
    compared = any(ratio(found, value) for found in receipt.rows for value in (found.predicted, found.published))
    quality = receipt.figure(QUALITY)
    size = receipt.figure("file_bytes")
    return {
        "label": row.label,
        "peer": receipt.peer,
        "rank": row.rank,
        "failed": record.failed,
        "state": {"failed": "failed", "running": "not finished", "new": "not run"}.get(receipt.state, receipt.state),
        "reason": record.reason,
        "remark": row.remark,
        "changes": receipt.changes,
        "own_changes": [change for change in receipt.changes if change not in common],
        "problems": receipt.problems,
        "difference": difference_text(row.difference).partition(" ± ")[::2],
        "headline": " · ".join(measured_cell(found) for found in (quality, size) if found and found.value is not None),
        "cells": {found.name: _cell(found) for found in receipt.rows},
        "receipt": [
            {
                "title": title(found.name),
                "predicted": predicted_cell(found),
                "measured": measured_cell(found),
                "published": written(found.name, found.published, found.unit),
                "dots": _dots(found, limit) if compared else None,
                "note": found.note,
            }
            for found in receipt.rows
        ],
        "has_published": any(found.published is not None for found in receipt.rows),
        "ticks": [(_place(tick, limit), f"×{tick:g}") for tick in ticks(limit, apart=0.18)] if compared else [],
        "machine": _machine_line(record),
        "samples": record.samples,
        "recipe": record.recipe_text,
    }


def _cell(found: Measurement) -> dict[str, str]:
    """A figure in the table of results; its unit stands in the column's head."""
    unit = unit_of(found.name)
    value, _, spread = measured_cell(found).removesuffix(unit).strip().partition(" ± ")
    error = f" ({percent(found.error)})" if found.error else ""
    predicted = written(found.name, found.predicted).removesuffix(unit).strip()
    return {
        "value": value,
        "missing": "missing" if found.value is None else "",
        "spread": spread,
        "predicted": predicted + error if predicted else "",
        "published": written(found.name, found.published).removesuffix(unit).strip(),
    }


def _dots(found: Measurement, limit: float) -> dict[str, str | None] | None:
    """Where the dots of a receipt's row stand, in percent of the strip; None for a row that was not measured."""
    if found.value is None:
        return None
    return {
        part: _place(share, limit) if (share := ratio(found, value)) else None
        for part, value in (("predicted", found.predicted), ("published", found.published))
    }


def _place(share: float, limit: float) -> str:
    return f"{50 + 46 * math.log(share) / math.log(limit):.2f}"


def _better(found: Measurement) -> str:
    if found.better != "neither" or found.name in _NEITHER:
        return found.better
    return "higher" if found.name in HIGHER_IS_BETTER else "lower"


def _byline(table: Table, budget: str) -> str:
    count = len(table.rows)
    failed = sum(row.record.failed for row in table.rows)
    dates = sorted({row.record.receipt.date[:10] for row in table.rows if row.record.receipt.date})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else ""
    parts = [f"{count} run{'s' * (count != 1)}" + (f", {failed} not finished" if failed else ""), budget, when]
    return " · ".join(part for part in parts if part)


def _table_note(table: Table) -> str:
    note = "Runs that share a rank cannot be told apart by these documents."
    return note + (f" Differences are to {table.baseline}." if table.baseline else "")


def _machine(record: RunRecord) -> str:
    machine = record.receipt.machine
    if machine is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine_words(machine)}; Python {machine.python}" + (f", {versions}" if versions else "")


def _machine_line(record: RunRecord) -> str:
    return ", ".join(part for part in (_machine(record), record.receipt.date[:16].replace("T", " ")) if part)
