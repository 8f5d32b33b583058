"""Results as files: the page, the Pareto plot, JSON and CSV. No torch."""

from __future__ import annotations

from pathlib import Path

from hayless.core import atomic
from hayless.core.errors import RequestError
from hayless.study import page, pareto
from hayless.study.results import Results
from hayless.study.table import Table

PAGE, PLOT, JSON, CSV = "report.html", "pareto.png", "results.json", "results.csv"


def publish(results: Results, folder: Path, *, picture: bytes | None = None) -> Table:
    """Write `report.html`, `pareto.png` (where two figures can be plotted), `results.json` and `results.csv` into
    `folder`; return the table they show. `picture` is a PNG for the page. WorkError when the disk does not take them.
    """
    table = results.table()
    page.write(table, folder / PAGE, name=results.name, budget=results.budget, picture=picture)
    try:
        pareto.write(results.records, folder / PLOT)
    except RequestError:
        # Nothing was measured that could be plotted; a plot of an earlier run would tell something else.
        (folder / PLOT).unlink(missing_ok=True)
    atomic.write_json(
        folder / JSON,
        {"name": results.name, "baseline": table.baseline, "budget": results.budget, "rows": table.to_dicts()},
    )
    atomic.write_text(folder / CSV, table.to_csv())
    return table
