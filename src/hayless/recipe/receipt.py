"""The receipt of a run: what was predicted, measured and published, side by side.

It is read from the run's folder, whatever state that is in: what is missing or damaged is said in `problems` and
nothing is made up. It is shown as a card in the terminal, as JSON, as a picture (SVG and PNG: a hollow dot where
predicted, a filled dot where measured, a line between) and as a section of the saved model's README. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.measurement import Machine, Measurement
from hayless.recipe import yaml
from hayless.recipe.figures import in_order, percent, title, written
from hayless.recipe.receipt_card import base_of, library_of, plain, transforms_of, with_metadata, with_section

STATES = ("new", "running", "done", "failed")


class Receipt(BaseModel):
    """What one run was, cost and gave.

    `changes` are its steps in short words (`kmeans bits=4`, `train lm, 2M tokens`); `peer` is the library that carried
    them out, with its version, where that was not hayless; `problems` says what could not be read from the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    state: str = "new"
    reason: str = ""
    seconds: float | None = None
    date: str = ""
    machine: Machine | None = None
    changes: tuple[str, ...] = ()
    peer: str = ""
    rows: tuple[Measurement, ...] = ()
    problems: tuple[str, ...] = Field(default=())

    @classmethod
    def from_run(cls, folder: Path | str, recipe: dict[str, Any] | None = None) -> Receipt:
        """The receipt of a run's folder; `recipe` is its recipe as plain data where the caller has read it already.

        RequestError when there is no such folder or no run in it.
        """
        path = Path(folder)
        if not path.is_dir():
            raise RequestError(f"There is no run in {path}: no such folder.")
        if not any((path / name).exists() for name in ("status.json", "recipe.yaml", "measurements.json")):
            raise RequestError(f"{path} holds no run: no status.json, recipe.yaml or measurements.json.")
        problems: list[str] = []
        status = _mapping(path / "status.json", problems)
        measured = _mapping(path / "measurements.json", problems)
        recipe = recipe_of(path, problems) if recipe is None else recipe
        state = status.get("state") if status.get("state") in STATES else "new"
        if state == "done" and not measured:
            problems.append("measurements.json is missing: nothing was measured.")
        return cls(
            name=str(recipe.get("name") or path.resolve().name),
            state=str(state),
            reason=str(status.get("reason") or "").encode("utf-8", errors="replace").decode("utf-8"),
            seconds=_number(status.get("seconds")),
            date=str(measured.get("date") or status.get("time") or ""),
            machine=_machine(measured.get("machine"), problems),
            changes=tuple(_changes(recipe)),
            peer=str(status.get("peer") or ""),
            rows=tuple(in_order(_rows(measured.get("rows"), problems))),
            problems=tuple(problems),
        )

    def figure(self, name: str) -> Measurement | None:
        """The row called `name`, or None."""
        return next((row for row in self.rows if row.name == name), None)

    def measured(self, name: str) -> float | None:
        """The measured value of `name`, or None where there is none."""
        row = self.figure(name)
        return row.value if row else None

    def with_published(self, figures: Mapping[str, float], source: str = "") -> Receipt:
        """A receipt with published figures beside its own, by measurement name; those not measured get a row too."""
        if not figures:
            return self
        note = f"published: {source}" if source else "published"
        rows = [row.model_copy(update={"published": figures.get(row.name, row.published)}) for row in self.rows]
        known = {row.name for row in rows}
        rows += [
            Measurement(name=name, unit="", published=value, note=note)
            for name, value in figures.items()
            if name not in known
        ]
        return self.model_copy(update={"rows": tuple(in_order(rows))})

    def to_json(self) -> dict[str, Any]:
        """Plain data; each row also has `error`, the share by which the prediction is off."""
        return self.model_dump(mode="json")

    def card(self) -> Card:
        """The receipt for a terminal: print it with rich."""
        return Card(self)

    def markdown(self, *, picture: str | None = None) -> str:
        """The receipt as Markdown; `picture` is the path of an image to show above the table."""
        lines = ["## Receipt", ""]
        if self.changes:
            lines += [f"Made with {plain(self.peer) or 'hayless'}: {plain(', '.join(self.changes))}.", ""]
        if picture:
            lines += [f"![Predicted and measured figures of {plain(self.name)}]({picture})", ""]
        lines += ["| figure | predicted | measured | published |", "|---|---:|---:|---:|"]
        for row in self.rows:
            cells = (predicted_cell(row), measured_cell(row), written(row.name, row.published, row.unit))
            lines.append(f"| {plain(title(row.name))} | " + " | ".join(plain(cell) for cell in cells) + " |")
        remarks = [f"{title(row.name)}: {row.note}." for row in self.rows if row.note and row.value is None]
        lines += ["", *(plain(remark) for remark in [*remarks, *self.problems])]
        if self.machine:
            versions = ", ".join(f"{name} {version}" for name, version in self.machine.versions.items())
            lines.append(f"Measured on {plain(machine_words(self.machine))}, {plain(versions)}, {plain(self.date)}.")
        return "\n".join(lines).rstrip() + "\n"

    def write(self, folder: Path) -> None:
        """Write `receipt.json`, `receipt.svg` and `receipt.png` into a run's folder, and the section of its model card.

        The model card is `model/README.md` where the run has a `model` folder; what else stands in it is kept.
        """
        from hayless.recipe.receipt_picture import draw

        atomic.write_json(folder / "receipt.json", self.to_json())
        if self.rows:
            atomic.write_bytes(folder / "receipt.svg", draw(self, "svg"))
            atomic.write_bytes(folder / "receipt.png", draw(self, "png"))
        model = folder / "model"
        if model.is_dir():
            picture = None
            if self.rows:
                atomic.write_bytes(model / "receipt.png", (folder / "receipt.png").read_bytes())
                picture = "receipt.png"
            card = model / "README.md"
            before = card.read_text(encoding="utf-8") if card.exists() else ""
            recipe = recipe_of(folder, [])
            text = with_section(before, self.markdown(picture=picture), self.name)
            text = with_metadata(
                text, library=library_of(model), tags=transforms_of(recipe), base_model=base_of(recipe)
            )
            atomic.write_text(card, text)


class Card:
    """A receipt as rich prints it: a table with a strip on which the predicted dot stands relative to the measured."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        receipt, plain = self.receipt, options.ascii_only
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("", overflow="fold")
        table.add_column("predicted", justify="right")
        table.add_column("measured", justify="right")
        shows_published = any(row.published is not None for row in receipt.rows)
        if shows_published:
            table.add_column("published", justify="right")
        table.add_column("predicted to measured", no_wrap=True)
        for row in receipt.rows:
            published = [Text(written(row.name, row.published, row.unit))] if shows_published else []
            cells = [Text(title(row.name)), Text(predicted_cell(row)), Text(measured_cell(row), style="bold")]
            table.add_row(*cells, *published, Text(_strip(row, plain)))
        parts: list[Any] = [Text(", ".join(receipt.changes), style="dim")] if receipt.changes else []
        parts += [Text(f"carried out by {receipt.peer}, a peer", style="dim")] if receipt.peer else []
        parts.append(table if receipt.rows else Text("Nothing was measured."))
        if receipt.state == "failed":
            parts.append(Text(f"Failed: {receipt.reason or 'no reason was noted'}", style="red"))
        parts += [Text(problem, style="yellow") for problem in receipt.problems]
        if receipt.machine:
            parts.append(Text(f"{machine_words(receipt.machine)}, {receipt.date}", style="dim"))
        yield Panel(Group(*parts), title=Text(receipt.name, style="bold"), title_align="left", expand=False)


def measured_cell(row: Measurement) -> str:
    """The measured figure, with its spread as ± half of it."""
    if row.value is None:
        return "not measured"
    text = written(row.name, row.value, row.unit)
    if row.low is None or row.high is None or row.low == row.high:
        return text
    half = written(row.name, (row.high - row.low) / 2, row.unit)
    (figure, _, unit), (spread, _, spread_unit) = text.partition(" "), half.partition(" ")
    if unit != spread_unit:
        return f"{text} ± {half}"
    decimals = len(figure.partition(".")[2])
    return f"{figure} ± {float(spread.replace(',', '')):.{decimals}f} {unit}".rstrip()


def predicted_cell(row: Measurement) -> str:
    """The predicted figure, and by how much it is off where it was measured too."""
    text = written(row.name, row.predicted, row.unit)
    return f"{text} ({percent(row.error)})" if text and row.error else text


def machine_words(machine: Machine) -> str:
    """A machine in one phrase."""
    host = f"{machine.processor}, {machine.cores} cores"
    return f"{machine.accelerator} ({host})" if machine.accelerator else host


def recipe_of(folder: Path, problems: list[str]) -> dict[str, Any]:
    """The resolved recipe of a run as plain data; empty, with the problem noted, when it cannot be read."""
    path = folder / "recipe.yaml"
    if not path.exists():
        problems.append("recipe.yaml is missing.")
        return {}
    try:
        found = yaml.read(path).data
    except RequestError as error:
        problems.append(f"recipe.yaml cannot be read: {error.message}")
        return {}
    return found if isinstance(found, dict) else {}


def _strip(row: Measurement, plain: bool, width: int = 21) -> str:
    """Measured in the middle; predicted left or right of it, a full half-width for a factor of two or more."""
    hollow, filled, line, both = ("o", "*", "-", "@") if plain else ("○", "●", "─", "◉")
    middle = width // 2
    if row.value is None or row.predicted is None or not row.value or row.predicted / row.value <= 0:
        return " " * middle + (filled if row.value is not None else hollow if row.predicted is not None else "")
    offset = max(-1.0, min(1.0, row.predicted / row.value - 1))
    at = middle + round(offset * middle)
    if at == middle:
        return " " * middle + both
    left, right = sorted((at, middle))
    marks = [" "] * left + [line] * (right - left + 1)
    marks[at], marks[middle] = hollow, filled
    return "".join(marks)


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = atomic.read_json(path)
    except (FileDamaged, OSError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no JSON object.")
        return {}
    return found


def _rows(found: Any, problems: list[str]) -> Iterator[Measurement]:
    """Each row that is a measurement; the others are named in `problems`."""
    for row in found if isinstance(found, list) else []:
        if not isinstance(row, dict):
            problems.append(f"measurements.json has a row that is no object: {str(row)[:80]}.")
            continue
        try:
            yield Measurement.model_validate({key: value for key, value in row.items() if key != "error"})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            problems.append(f"{row.get('name', 'a figure')} is left out: {where} = {first['input']!r}, {first['msg']}.")


def _machine(found: Any, problems: list[str]) -> Machine | None:
    if found is None:
        return None
    try:
        return Machine.model_validate(found)
    except ValidationError as error:
        problems.append(f"The machine in measurements.json cannot be read: {error.errors()[0]['msg']}.")
        return None


def _number(found: Any) -> float | None:
    try:
        value = float(found)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None


def _changes(recipe: dict[str, Any]) -> Iterator[str]:
    """What the steps of a recipe do, in short words, from its plain data."""
    steps = recipe.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict):
            continue
        applied, train = step.get("apply"), step.get("train")
        if applied:
            yield method_words(applied)
        elif isinstance(train, dict):
            length = f"{train['tokens']:,} tokens" if isinstance(train.get("tokens"), int) else None
            length = length or (f"{train['steps']:,} steps" if isinstance(train.get("steps"), int) else "")
            parts = [_method_name(train.get(slot)) for slot in ("objective", "optimizer")]
            memory = train.get("memory")
            parts += [_method_name(item) for item in memory] if isinstance(memory, list) else []
            yield " ".join(["train", *(part for part in parts if part), length]).strip()


def method_words(config: Any) -> str:
    """A method and its options in short words: `kmeans bits=4`. Long options are left out."""
    if not isinstance(config, dict):
        return str(config)
    options = [
        f"{key}={json.dumps(value) if isinstance(value, bool) else value}"
        for key, value in config.items()
        if key != "method" and isinstance(value, bool | int | float | str) and len(str(value)) <= 24
    ]
    return " ".join([str(config.get("method", "?")), *options])


def _method_name(config: Any) -> str:
    return str(config.get("method", "")) if isinstance(config, dict) else str(config or "")
