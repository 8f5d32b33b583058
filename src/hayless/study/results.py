"""What a study gave: its file of outcomes, and the records of its rows. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.units import format_bytes, format_seconds
from hayless.recipe.receipt import Receipt
from hayless.study import table
from hayless.study.record import RunRecord, read, read_all
from hayless.study.schema import Budget
from hayless.study.table import Table

State = Literal["waiting", "running", "done", "failed", "stopped"]

FILE = "study.json"
PEAKS = ("train_peak_bytes", "decode_peak_bytes")


class Outcome(BaseModel):
    """How far one row of a study is.

    `key` names what was asked (recipe, and the rows it starts from); `seconds` is wall time over all attempts at it;
    `at_once` is how many rows ran at the same time at most, itself included.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    label: str
    slug: str
    row: str
    key: str = ""
    state: State = "waiting"
    reason: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    at_once: int = 1
    published: dict[str, float] = Field(default_factory=dict)
    source: str = ""
    budgeted: bool = True


class Outcomes(BaseModel):
    """The content of `study.json`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    baseline: str | None = None
    budget: Budget | None = None
    rows: list[Outcome] = Field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write `study.json` into the study's folder."""
        atomic.write_json(folder / FILE, self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Results:
    """The rows of a study, or of any runs, ready to be shown."""

    name: str
    records: Sequence[RunRecord]
    baseline: str | None = None
    budget: str = ""

    def table(self) -> Table:
        """The rows ranked and compared with the baseline."""
        return table.build(self.records, self.baseline)


def read_outcomes(folder: Path) -> Outcomes:
    """The outcomes noted in a study's folder. FileDamaged when the file is not what it should be."""
    content = atomic.read_json(folder / FILE)
    try:
        return Outcomes.model_validate(content)
    except ValidationError as error:
        raise FileDamaged(f"{folder / FILE} is not a study's file: {error.errors()[0]['msg']}.") from None


def read_study(folder: Path) -> Results:
    """The results of a study's folder, finished or not. RequestError when no study is there."""
    if not (folder / FILE).is_file():
        raise RequestError(f"{folder} holds no study: there is no {FILE}.")
    outcomes = read_outcomes(folder)
    records = [_record(folder, outcome, outcomes.budget) for outcome in outcomes.rows]
    baseline = next((outcome.label for outcome in outcomes.rows if outcome.row == outcomes.baseline), None)
    return Results(outcomes.name, records, baseline, budget_words(outcomes.budget))


def read_runs(paths: Iterable[Path], name: str = "runs") -> Results:
    """The results of any folders: runs, and studies with all their rows. A single study keeps its name and baseline."""
    given = list(paths)
    if not given:
        raise RequestError("Name at least one run's or study's folder.")
    studies = {path: read_study(path) for path in given if (path / FILE).is_file()}
    if len(given) == 1 and studies:
        return studies[given[0]]
    records = [record for found in studies.values() for record in found.records]
    records += read_all(path for path in given if path not in studies)
    labels = [record.label for record in records]
    told_apart = [
        replace(record, label=f"{record.label} ({record.folder})") if labels.count(record.label) > 1 else record
        for record in records
    ]
    return Results(name if len(given) > 1 else given[0].resolve().name, told_apart)


def budget_words(budget: Budget | None) -> str:
    """A budget in a few words."""
    if budget is None:
        return ""
    if budget.tokens is not None:
        return f"{budget.tokens:,} tokens of training a run"
    if budget.flops is not None:
        return f"{budget.flops:.3g} FLOPs of training a run".replace("e+", "e")
    if budget.seconds is not None:
        return f"{format_seconds(budget.seconds)} a run"
    return f"{format_bytes(budget.memory or 0)} of memory a run"


def _record(folder: Path, outcome: Outcome, budget: Budget | None) -> RunRecord:
    try:
        found = read(folder / outcome.slug, outcome.label)
    except RequestError:
        receipt = Receipt(name=outcome.label, state="new")
        found = RunRecord(label=outcome.label, folder=folder / outcome.slug, receipt=receipt)
    receipt = found.receipt.with_published(outcome.published, outcome.source)
    if outcome.state in ("failed", "stopped"):
        receipt = receipt.model_copy(update={"state": "failed", "reason": outcome.reason})
    remarks = [outcome.reason] if outcome.state == "done" and outcome.reason else []
    if outcome.at_once > 1:
        remarks.append(f"Times were disturbed: up to {outcome.at_once} rows ran at once.")
    limit = budget.memory if budget and outcome.budgeted else None
    peaks = [value for name in PEAKS if (value := receipt.measured(name)) is not None]
    over = limit is not None and bool(peaks) and max(peaks) > limit
    if limit is not None and over:
        remarks.append(f"Over the budget: a peak of {format_bytes(max(peaks))}, allowed {format_bytes(limit)}.")
    return replace(found, receipt=receipt, remark=" ".join(remarks), over_budget=over)
