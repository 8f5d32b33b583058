"""`hayless compare`: was it worth it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hayless.cli.output import Json, emit, out

if TYPE_CHECKING:
    from hayless.study.table import Table


def compare(
    study: str = typer.Argument("", help="A study in YAML: rows of recipes under one budget."),
    fresh: bool = typer.Option(False, "--fresh", help="Run every row anew, whatever is done already."),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON Schema of studies, for editors."),
    json: bool = Json,
) -> None:
    """Run a study and show its rows side by side. What is done is kept; what was stopped goes on."""
    if schema:
        from hayless.study.schema import Study

        emit(Study.model_json_schema())
        return
    if not study:
        raise typer.BadParameter("give a study, or --schema", param_hint="STUDY")
    from hayless.study.publish import publish
    from hayless.study.runner import run
    from hayless.study.schema import load

    wanted = load(Path(study))
    results = run(wanted, fresh=fresh)
    table = publish(results, wanted.path)
    if json:
        emit({"folder": str(wanted.path), "rows": table.to_dicts()})
    else:
        show(table)
        out.print(files(wanted.path), soft_wrap=True)
    if all(row.record.failed for row in table.rows):
        raise typer.Exit(1)


def show(table: Table) -> None:
    """Print a table and what follows from it."""
    from hayless.study.table import summary

    out.print(table.to_rich())
    for sentence in summary(table):
        out.print(sentence, soft_wrap=True)


def files(folder: Path) -> str:
    """Where the files of published results are."""
    from hayless.study.publish import CSV, JSON, PAGE, PLOT

    return f"In {folder}: " + ", ".join(name for name in (PAGE, PLOT, JSON, CSV) if (folder / name).exists())
