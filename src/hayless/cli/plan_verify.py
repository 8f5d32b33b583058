"""`hayless plan verify`: predictions beside what fresh processes take on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.output import Device, Json, emit, err, out
from hayless.cli.output import table as show_table

if TYPE_CHECKING:
    from hayless.plan.grid import Kind
    from hayless.plan.verified import Compared, Line


def verify(
    folder: Path = typer.Argument(Path("runs/verify"), metavar="[FOLDER]", help="Where finished cases are kept."),
    quick: bool = typer.Option(False, "--quick", help="A few cases of the grid."),
    device: str = Device,
    memory_only: bool = typer.Option(False, "--memory-only", help="Time nothing; cases run side by side."),
    at_once: int = typer.Option(None, "--at-once", min=1, help="Processes side by side; 8 on a GPU, 1 on a CPU."),
    fresh: bool = typer.Option(False, "--fresh", help="Run finished cases again."),
    no_run: bool = typer.Option(False, "--no-run", help="Compare what is in FOLDER; run nothing."),
    out_file: Path = typer.Option(None, "--out", help="Draw predicted over measured peaks to this .png or .svg."),
    json: bool = Json,
) -> None:
    """Train and decode a grid of models with random weights, each in a fresh process, and compare peaks and times."""
    from hayless.cli.inputs import picture_form
    from hayless.plan import grid, verified
    from hayless.plan.verify import read, run
    from hayless.recipe.prediction import device_kind

    form = picture_form(out_file)
    if no_run:
        content = read(folder)
    else:
        on = device_kind("auto") if device == "auto" else device
        kind: Kind = device_kind(on)
        cases = grid.cases(kind, quick=quick)
        at_once = at_once or (8 if kind == "cuda" else 1)
        content = run(cases, folder, device=on, say=_say, timed=not memory_only, fresh=fresh, at_once=at_once)
    cases = grid.cases(content["kind"], quick=quick)
    found = verified.lines(content, cases)
    spreads = verified.summary(found)
    if out_file:
        from hayless.core.atomic import write_bytes
        from hayless.plan.picture import draw_verified

        write_bytes(out_file, draw_verified(found, form))
    if json:
        summary = {name: {field: getattr(each, field) for field in each.__slots__} for name, each in spreads.items()}
        about = {"machine": content["machine"], "device": content["device"], "kind": content["kind"]}
        emit({**about, "margin": verified.margin(content["kind"]), "summary": summary, "cases": _plain(found)})
        return
    out.print(f"{content['device']['name']}, {len(found)} cases", style="bold", markup=False)
    _show_lines(found)
    columns = ["", "cases", "median error", "worst", "lowest"]
    rows = [
        [name, str(each.count), f"{each.median:.2%}", f"{each.worst:.2%}", f"{each.lowest:+.2%}"]
        for name, each in spreads.items()
    ]
    show_table(columns, rows, right=4)
    for remark in verified.remarks(content["kind"]):
        out.print(remark, style="dim", markup=False)


def _say(name: str, done: int, total: int) -> None:
    err.print(f"{done}/{total}  {name}", markup=False)


def _plain(found: Sequence[Line]) -> list[dict[str, Any]]:
    return [line.to_json() for line in found]


def _show_lines(found: Sequence[Line]) -> None:
    """Tables of peaks and of times, without columns that are empty."""
    from hayless.core.units import format_bytes

    others = list(dict.fromkeys(name for line in found for name in line.others))
    peaks = []
    for line in found:
        sizes = (line.reserved_bytes, line.context_bytes, *(line.others.get(name) for name in others))
        peak = _cells(line.peak, format_bytes) if line.peak else [line.why, "", ""]
        peaks.append([line.case.name, *peak, *(format_bytes(size) if size else "" for size in sizes)])
    _show(["peak memory", "predicted", "measured", "error", "reserved", "context", *others], peaks)
    timed = [line for line in found if line.time]
    times = [[line.case.name, *_cells(line.time, _milliseconds), "fitted" * line.fitted] for line in timed]
    _show(["time of an update, or of a token", "predicted", "measured", "error", "constants"], times)


def _show(titles: list[str], rows: list[list[str]]) -> None:
    kept = [place for place in range(len(titles)) if any(row[place] for row in rows)]
    if rows:
        shown = [[row[place] for place in kept] for row in rows]
        show_table([titles[place] for place in kept], shown, right=len(kept) - 1)


def _cells(figure: Compared | None, write: Any) -> list[str]:
    return [write(figure.predicted), write(figure.measured), f"{figure.error:+.2%}"] if figure else ["", "", ""]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
