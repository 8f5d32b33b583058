"""What every verb prints: one JSON document on stdout when asked for, tables otherwise; progress goes to stderr."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console

Json = typer.Option(False, "--json", help="Print one JSON document on standard output.")

out = Console(highlight=False)
"""Results, on standard output."""

err = Console(stderr=True, highlight=False)
"""Progress and remarks, on standard error."""


def emit(document: Any) -> None:
    """Print `document` as JSON; NaN and infinities are errors, since JSON has none."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
