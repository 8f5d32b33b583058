"""What the verbs about data ask for in the same way: where text comes from, where a picture goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hayless.core.errors import RequestError, bad_value

if TYPE_CHECKING:
    from hayless.core.drawing import Form
    from hayless.data.config import Source

Builtin = typer.Option(
    "", "--builtin", help="stdlib: Python's own library; or stdlib_instructions, stdlib_preferences."
)
Heldout = typer.Option(0.05, "--heldout", help="Share of documents held out, by a hash of their names.")


def sources(files: Sequence[str], builtin: str, format: str = "auto", *, option: str = "FILE") -> tuple[Source, ...]:
    """Sources for files, folders and patterns, and for what is built in. RequestError where there is none.

    `option` is what the verb calls its files.
    """
    from hayless.core.options import checked
    from hayless.data.config import Source

    names = {"path": option, "format": "--format"}
    found = [checked(Source, {"path": file, "format": format}, names) for file in files]
    if builtin:
        found.append(checked(Source, {"builtin": builtin}, {"builtin": "--builtin"}))
    if not found:
        raise RequestError(
            "There is no data: no documents are named.",
            hint=f"Give files, folders or patterns ({option}), or --builtin stdlib.",
        )
    return tuple(found)


def picture_form(target: Path | None, *, option: str = "--out") -> Form:
    """The form of picture that a file's name asks for (png where there is no file). RequestError for another suffix.

    `option` is what the verb calls its file.
    """
    if target is None or target.suffix == ".png":
        return "png"
    if target.suffix == ".svg":
        return "svg"
    raise bad_value(option, str(target), allowed="a file that ends in .png or .svg")
