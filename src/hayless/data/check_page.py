"""The data check as one HTML file that works offline. Text from the data is escaped, and no script runs in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hayless.data.check import Figures, Problem
from hayless.data.check_view import Shown

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(
    description: str,
    figures: Figures | None,
    problems: Sequence[Problem],
    examples: Sequence[Shown],
    lengths: bytes,
    *,
    sequence_length: int,
) -> str:
    """The page: problems first, then the figures, the picture of `lengths` (SVG) and the examples token by token."""
    folder = files("hayless.data")
    style = folder.joinpath("check_page.css").read_text(encoding="utf-8")
    template = _ENVIRONMENT.from_string(folder.joinpath("check_page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        description=description.splitlines(),
        figures=figures,
        problems=problems,
        examples=examples,
        lengths=base64.b64encode(lengths).decode(),
        sequence_length=sequence_length,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )
