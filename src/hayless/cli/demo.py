"""`hayless demo`: show me."""

from __future__ import annotations

from pathlib import Path

import typer

from hayless.cli.output import Json, emit, out


def demo(
    everything: bool = typer.Option(False, "--all", help="Every method, not one of each family."),
    fresh: bool = typer.Option(False, "--fresh", help="Start over; without it, what is done is kept."),
    folder: str = typer.Option("runs/demo", "--folder", help="Where its runs go."),
    json: bool = Json,
) -> None:
    """Train a small model on Python's own library, make it cheaper in several ways, and measure what each way costs."""
    from hayless.cli.compare import files, show
    from hayless.study.demo import run

    table = run(Path(folder), everything=everything, fresh=fresh)
    if json:
        emit({"folder": folder, "rows": table.to_dicts()})
    else:
        for row in table.rows:
            out.print(row.record.receipt.card())
        show(table)
        out.print(files(Path(folder)), soft_wrap=True)
    if any(row.record.failed for row in table.rows):
        raise typer.Exit(1)
