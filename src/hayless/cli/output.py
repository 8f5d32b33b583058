"""What every verb prints: one JSON document on stdout when asked for, tables otherwise; progress goes to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console

Json = typer.Option(False, "--json", help="Print one JSON document on standard output.")


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise typer.BadParameter("allowed: auto, cpu, cuda, cuda:N or mps.")
    return name


Device = typer.Option("auto", "--device", callback=_device, help="auto, cpu, cuda, cuda:N or mps.")

Dtype = typer.Option(None, "--dtype", help="Of the weights: float32, bfloat16 or float16; as stored if not given.")

Model = typer.Argument(metavar="MODEL", help="A model's folder, an adapter's folder, or an id on the Hugging Face hub.")

_LOG_WIDTH = 140
"""Columns where there is no terminal: tables in a file or a pipe are not folded to the 80 that rich assumes there."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)
"""Results, on standard output."""

err = Console(stderr=True, highlight=False)
"""Progress and remarks, on standard error."""


def emit(document: Any) -> None:
    """Print `document` as JSON; NaN and infinities are errors, since JSON has none."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: int = 0, console: Console = out) -> None:
    """Print rows of plain text and an empty line; the last `right` columns are aligned to the right."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False, show_header=any(titles))
    for number, title in enumerate(titles):
        to_right = number >= len(titles) - right
        shown.add_column(title, overflow="fold", justify="right" if to_right else "left")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    console.print(shown)
    console.print()
