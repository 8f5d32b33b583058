"""How the tables of `hayless plan` are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hayless.cli.output import emit, out
from hayless.cli.output import table as show_table

if TYPE_CHECKING:
    from hayless.plan.table import Table


def show_tables(tables: Sequence[Table], json: bool, said: Sequence[str] = ()) -> None:
    """Print tables with their remarks and sources, and then what is said of them."""
    if json:
        emit({"tables": [each.to_json() for each in tables], "claims": list(said)})
        return
    for each in tables:
        out.print(each.title, style="bold", markup=False)
        text = sum(1 for cell in each.cells[0] if not _numeric(cell))
        show_table(each.columns, each.cells, right=len(each.columns) - max(1, text))
        for note in each.notes:
            out.print(note, markup=False)
        if each.source:
            out.print(f"Printed figures: {each.source}.", style="dim", markup=False)
        if each.notes or each.source:
            out.print()
    for line in said:
        out.print(line, markup=False)


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+−="
