"""Rows of JSON: JSON Lines, or one JSON list, plain or gzipped; every row knows its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hayless.core.errors import RequestError
from hayless.data.documents import FoundFile, read_text

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object. `line` counts from 1 and is where the object starts."""

    file: FoundFile
    line: int
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """A name for what the row becomes: the file's name and the line."""
        return f"{self.file.name}:{self.line}"


class Malformed:
    """Collects what is wrong with rows, so that one error names several of them and counts all."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._count = 0

    def add(self, file: FoundFile, line: int, reason: str) -> None:
        """Note one row that cannot be used."""
        self._count += 1
        if len(self._found) < _SHOWN:
            self._found.append(f"{file.path}, line {line}: {reason}")

    def check(self) -> None:
        """RequestError when anything was noted."""
        if self._count:
            more = f"\n  … and {self._count - _SHOWN} more" if self._count > _SHOWN else ""
            raise RequestError(
                f"{self._count} malformed row{'s' * (self._count > 1)}:\n  " + "\n  ".join(self._found) + more,
                hint="Rows are never dropped in silence: correct or remove them.",
            )


def read_rows(file: FoundFile, malformed: Malformed) -> Iterator[Row]:
    """The objects of a JSON Lines file or of a JSON list. Lines that are no objects go to `malformed`."""
    text = read_text(file.path)
    if text.lstrip()[:1] == "[":
        yield from _list_rows(file, text, malformed)
    else:
        yield from _line_rows(file, text, malformed)


def _line_rows(file: FoundFile, text: str, malformed: Malformed) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            malformed.add(file, line, f"no JSON ({error})")
            continue
        if isinstance(value, dict):
            yield Row(file, line, value)
        else:
            malformed.add(file, line, f"{_json_name(value)} where an object {{…}} is needed")


def _list_rows(file: FoundFile, text: str, malformed: Malformed) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    at = skip(at)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            malformed.add(file, line, f"no JSON ({error})")
            return
        if isinstance(value, dict):
            yield Row(file, line, value)
        else:
            malformed.add(file, line, f"{_json_name(value)} where an object {{…}} is needed")
        at = skip(at)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
        elif text[at : at + 1] != "]":
            malformed.add(file, line + text.count("\n", counted, at), "the list ends without ]")
            return


def _json_name(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
