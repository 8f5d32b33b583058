"""`hayless report`: runs and studies that are there, as a table, a page and receipts."""

from __future__ import annotations

from pathlib import Path

import typer

from hayless.cli.output import Json, emit, out


def report(
    runs: list[str] = typer.Argument(None, help="Folders of runs or studies."),
    folder: str = typer.Option("", "--out", help="Write the page, the plot, JSON and CSV into this folder."),
    baseline: str = typer.Option("", "--baseline", help="Label of the run the others are compared with."),
    json: bool = Json,
) -> None:
    """Show runs side by side as they are now, finished or not; a single run as its receipt."""
    if not runs:
        raise typer.BadParameter("name at least one folder of a run or a study", param_hint="RUNS")
    from dataclasses import replace

    from hayless.cli.compare import files, show
    from hayless.study.publish import publish
    from hayless.study.results import read_runs

    results = read_runs([Path(path) for path in runs])
    results = replace(results, baseline=baseline) if baseline else results
    table = publish(results, Path(folder)) if folder else results.table()
    if json:
        emit({"name": results.name, "rows": table.to_dicts()})
        return
    if len(table.rows) == 1:
        out.print(table.rows[0].record.receipt.card())
    else:
        show(table)
    if folder:
        out.print(files(Path(folder)), soft_wrap=True)
