"""Runs as a table: figures side by side, ranked by quality, differences judged over the same documents. No torch.

Quality is bits per byte, which compares across tokenizers. The difference to the baseline and to the next better row
is a paired bootstrap over the same documents (`hayless.measure.interval`). A row whose difference to the best row of a
rank is within the noise shares that rank. Rows that failed, and rows above the budget, stand at the end, unranked.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hayless.core.errors import RequestError, unknown
from hayless.measure import interval
from hayless.measure.interval import Interval
from hayless.recipe.figures import title, unit_of, written
from hayless.recipe.receipt import measured_cell
from hayless.study.record import Documents, RunRecord

if TYPE_CHECKING:
    from rich.table import Table as RichTable

QUALITY = "bits_per_byte"
COLUMNS = (
    QUALITY,
    "train_peak_bytes",
    "decode_peak_bytes",
    "file_bytes",
    "train_tokens_per_second",
    "ms_per_token",
    "joules_per_token",
)
"""Measurements that tables show and that plots have as axes."""

HIGHER_IS_BETTER = frozenset({"train_tokens_per_second", "pairwise_accuracy", "token_accuracy"})


@dataclass(frozen=True, slots=True)
class Row:
    """A run with its rank by quality and its difference to the baseline in bits per byte (None where there is none)."""

    record: RunRecord
    rank: int | None = None
    difference: Interval | None = None
    remark: str = ""

    @property
    def label(self) -> str:
        """What the run is called."""
        return self.record.label


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in the order they are shown: ranked, then done without a rank, then failed."""

    rows: tuple[Row, ...]
    baseline: str | None

    @property
    def columns(self) -> list[str]:
        """The `COLUMNS` that some row has a figure for."""
        return [
            name
            for name in COLUMNS
            if any(
                (found := row.record.receipt.figure(name))
                and any(value is not None for value in (found.value, found.predicted, found.published))
                for row in self.rows
            )
        ]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dict a row: label, the peer that made it if one did, state, reason, rank, difference to the
        baseline, and every measurement."""
        return [
            {
                "label": row.label,
                "peer": row.record.receipt.peer,
                "state": row.record.receipt.state,
                "reason": row.record.reason,
                "remark": row.remark,
                "rank": row.rank,
                "changes": list(row.record.receipt.changes),
                "difference_bits_per_byte": row.difference.model_dump() if row.difference else None,
                "measurements": [found.model_dump(mode="json") for found in row.record.receipt.rows],
            }
            for row in self.rows
        ]

    def to_csv(self) -> str:
        """The table for a spreadsheet: a column each for value, low, high, predicted and published of every figure."""
        names: list[str] = []
        for row in self.rows:
            names += [found.name for found in row.record.receipt.rows if found.name not in names]
        parts = ("value", "low", "high", "predicted", "published")
        kept = [
            (name, part)
            for name in names
            for part in parts
            if any((found := row.record.receipt.figure(name)) and getattr(found, part) is not None for row in self.rows)
        ]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        heads = [name if part == "value" else f"{name}_{part}" for name, part in kept]
        writer.writerow(
            ["run", "peer", "state", "rank", "difference_bits_per_byte", *map(_cell, heads), "remark", "reason"]
        )
        for row in self.rows:
            receipt = row.record.receipt
            figures = [getattr(found, part) if (found := receipt.figure(name)) else None for name, part in kept]
            difference = row.difference.value if row.difference else None
            writer.writerow(
                [
                    _cell(row.label),
                    _cell(receipt.peer),
                    receipt.state,
                    row.rank,
                    difference,
                    *figures,
                    _cell(row.remark),
                    _cell(row.record.reason),
                ]
            )
        return out.getvalue()

    def to_rich(self) -> RichTable:
        """The table for a terminal."""
        from rich.table import Table as RichTable
        from rich.text import Text

        columns = self.columns
        table = RichTable(box=None, header_style="bold", pad_edge=False)
        table.add_column("rank", justify="right")
        table.add_column("run", overflow="fold")
        for name in columns:
            unit = unit_of(name)
            table.add_column(title(name) + (f"\n{unit}" if unit else ""), justify="right")
            if name == QUALITY:
                table.add_column("to baseline", justify="right")
        for row in self.rows:
            peer = row.record.receipt.peer
            cells = [str(row.rank) if row.rank else "", f"{row.label} (peer: {peer})" if peer else row.label]
            for name in columns:
                found = row.record.receipt.figure(name)
                cells.append(measured_cell(found).removesuffix(unit_of(name)).rstrip() if found else "")
                if name == QUALITY:
                    cells.append(difference_text(row.difference))
            style = "red" if row.record.failed else "yellow" if row.record.over_budget else ""
            table.add_row(*(Text(cell) for cell in cells), style=style)
        notes = [
            f"{row.label}: {row.record.reason or row.remark}" for row in self.rows if row.record.failed or row.remark
        ]
        if notes:
            table.caption = Text("\n".join(notes), style="dim")
            table.caption_justify = "left"
        return table


def build(records: Sequence[RunRecord], baseline: str | None = None) -> Table:
    """Rank `records` and compare them with the one labelled `baseline` (the first that has a quality, if None).

    A run that was measured on other documents than the baseline takes no rank: its quality is of another kind.
    """
    labels = [record.label for record in records]
    if baseline is not None and baseline not in labels:
        raise unknown("baseline", baseline, labels)
    good = [record for record in records if not record.failed and not record.over_budget]
    rated = [record for record in good if _quality(record) is not None]
    against = next((r for r in records if (r.label == baseline if baseline else r in rated)), None)
    ranked = sorted(
        (record for record in rated if against is None or not _elsewhere(record, against)),
        key=lambda record: _quality(record) or 0.0,
    )
    rows = [Row(record, rank, remark=record.remark) for record, rank in zip(ranked, _ranks(ranked), strict=True)]
    rows += [Row(record, remark=record.remark) for record in good if record not in ranked]
    rows += [Row(record, remark=record.remark) for record in records if record.over_budget and not record.failed]
    rows += [Row(record, remark=record.remark) for record in records if record.failed]
    if against is not None:
        rows = [_compared(row, against) for row in rows]
    return Table(tuple(rows), against.label if against else None)


def _elsewhere(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs are known to have been measured on different documents."""
    if one.documents is None or other.documents is None:
        return False
    return _sizes(one.documents) != _sizes(other.documents)


def _sizes(documents: Documents) -> dict[str, int]:
    """Each document and its bytes: tokens may differ between tokenizers, documents may not."""
    return {name: row[2] for name, row in documents.rows.items()}


def paired(one: RunRecord, other: RunRecord) -> Interval:
    """Bits per byte of `one` minus `other`, over the same documents. RequestError where there are no such documents."""
    if one.documents is None or other.documents is None:
        lacking = one if one.documents is None else other
        raise RequestError(f"{lacking.label} has no losses by document.")
    if _sizes(one.documents) != _sizes(other.documents):
        raise RequestError(f"{one.label} and {other.label} were not measured on the same documents.")
    ids = sorted(one.documents.rows)
    return interval.difference(_figures(one.documents, ids), _figures(other.documents, ids))


def difference_text(found: Interval | None) -> str:
    """A difference with its sign and half its interval: `+0.012 ± 0.004`; `≈` before one within the noise."""
    if found is None:
        return ""
    text = f"{found.value:+.3f}".replace("-", "−")
    if found.low is None or found.high is None:
        return text
    sure = "" if found.excludes_zero or found.value == 0 else "≈ "
    return f"{sure}{text} ± {(found.high - found.low) / 2:.3f}"


def _figures(documents: Documents, ids: list[str]) -> tuple[list[float], list[float]]:
    rows = [documents.rows[name] for name in ids]
    return [nats / math.log(2) for nats, _, _ in rows], [float(size) for _, _, size in rows]


def _quality(record: RunRecord) -> float | None:
    return record.receipt.measured(QUALITY)


def _ranks(ranked: Sequence[RunRecord]) -> list[int]:
    """Ranks from 1; a row within the noise of the first row of a rank has that rank too."""
    ranks: list[int] = []
    leader = 0
    for position, record in enumerate(ranked):
        if position and not _same(record, ranked[leader]):
            leader = position
        ranks.append(leader + 1)
    return ranks


def _same(one: RunRecord, other: RunRecord) -> bool:
    if _quality(one) == _quality(other):
        return True
    try:
        return not paired(one, other).excludes_zero
    except RequestError:
        return False


def _compared(row: Row, against: RunRecord) -> Row:
    if row.record.label == against.label or row.record.failed or _quality(row.record) is None:
        return row
    try:
        return replace(row, difference=paired(row.record, against))
    except RequestError as error:
        return replace(row, remark=" ".join(filter(None, [row.remark, error.message])))


def _cell(text: str) -> str:
    """Text that a spreadsheet shows and does not run: a leading = + - @ is quoted."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def summary(table: Table) -> list[str]:
    """What the table says, in a few sentences that follow from its figures alone."""
    done = [row for row in table.rows if not row.record.failed and not row.record.over_budget]
    ranked = [row for row in done if row.rank is not None]
    base = next((row for row in table.rows if row.label == table.baseline), None)
    found = []
    for name, words, less in (
        (QUALITY, "Best quality", ""),
        ("file_bytes", "Smallest file", "smaller"),
        ("train_peak_bytes", "Least memory to train", "less"),
        ("ms_per_token", "Fastest decoding", "faster"),
    ):
        best = min(
            (row for row in (ranked or done) if row.record.receipt.measured(name) is not None),
            key=lambda row: row.record.receipt.measured(name) or 0.0,
            default=None,
        )
        if best is None:
            continue
        value = best.record.receipt.measured(name)
        text = f"{words}: {best.label}, {written(name, value)}"
        reference = base.record.receipt.measured(name) if base else None
        if less and base and reference and value and reference > value:
            text += f" ({reference / value:.3g} times {less} than {base.label})"
        if best.difference and name != QUALITY:
            text += f", at {difference_text(best.difference)} bits/byte"
        found.append(text + ".")
    return found
