"""Rows: JSON Lines or one JSON list, plain or gzipped; Parquet and Arrow tables. Every row knows its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hayless.core.errors import FileDamaged, RequestError
from hayless.data.documents import TABLE_SUFFIXES, FoundFile, kind_of, read_text

_SHOWN = 5
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object, or row of a table. `line` counts from 1 and is where the object starts."""

    file: FoundFile
    line: int
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """A name for what the row becomes: the file's name and the line."""
        return f"{self.file.name}:{self.line}"


class RowError(ValueError):
    """What is wrong with one row; the reader adds file and line."""


class Malformed:
    """Collects what is wrong with rows, so that one error names several of them and counts all."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._count = 0

    def add(self, file: FoundFile, line: int, reason: str) -> None:
        """Note one row that cannot be used."""
        self._count += 1
        if len(self._found) < _SHOWN:
            self._found.append(f"{file.at(line)}: {reason}")

    def check(self) -> None:
        """RequestError when anything was noted."""
        if self._count:
            more = f"\n  … and {self._count - _SHOWN} more" if self._count > _SHOWN else ""
            raise RequestError(
                f"{self._count} malformed row{'s' * (self._count > 1)}:\n  " + "\n  ".join(self._found) + more,
                hint="Rows are never dropped in silence: correct or remove them.",
            )


def read_rows(file: FoundFile, malformed: Malformed) -> Iterator[Row]:
    """The objects of a file. Lines that are no objects go to `malformed`; FileDamaged for a table that is not whole."""
    if kind_of(file.path) in TABLE_SUFFIXES:
        yield from _table_rows(file)
        return
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


def _table_rows(file: FoundFile) -> Iterator[Row]:
    """Rows of a Parquet or Arrow file, mapped into memory and turned to Python a thousand at a time."""
    import pyarrow

    line = 0
    try:
        for batch in _record_batches(file.path):
            for fields in batch.to_pylist():
                line += 1
                yield Row(file, line, fields)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileDamaged(f"{file.path} is not a whole {kind_of(file.path)[1:]} file: {reason}") from error


def _record_batches(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import ipc, parquet

    if kind_of(path) == ".parquet":
        with parquet.ParquetFile(path, memory_map=True) as table:
            yield from table.iter_batches(_ROWS_AT_ONCE)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            opened = ipc.open_file(source)
            reader = (opened.get_batch(number) for number in range(opened.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(start, _ROWS_AT_ONCE)


def _json_name(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
