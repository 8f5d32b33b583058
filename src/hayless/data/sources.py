"""Reading one source of a recipe's data: its files, the format they are in, and the records they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hayless.core.errors import NotSupported, RequestError
from hayless.core.units import format_bytes
from hayless.data import stdlib
from hayless.data.config import Format, Source
from hayless.data.documents import (
    ROW_SUFFIXES,
    Document,
    Found,
    FoundFile,
    cut,
    find_files,
    kind_of,
    read_bytes,
    read_text,
)
from hayless.data.examples import Record, RowError, detect, parse
from hayless.data.rows import Malformed, Row, read_rows

_NOT_READ = {".parquet": "Parquet", ".arrow": "Arrow"}


@dataclass(frozen=True, slots=True)
class SourceRead:
    """The records of a source in a fixed order, and what was found, in words."""

    records: list[Record]
    description: str


def fingerprint(source: Source) -> str:
    """SHA-256 over the content of everything the source would read, in hex."""
    digest = hashlib.sha256(source.model_dump_json().encode())
    if source.path is None:
        digest.update(stdlib.fingerprint().encode())
        return digest.hexdigest()
    for file in find_files(source.path).files:
        digest.update(f"\0{file.name}\0".encode())
        digest.update(hashlib.sha256(read_bytes(file.path)).digest())
    return digest.hexdigest()


def read_source(source: Source) -> SourceRead:
    """Read a source whole.

    Raises RequestError for paths that match nothing, files that are not UTF-8, rows that are malformed (with file and
    line) and a source without any text.
    """
    if source.path is None:
        library = stdlib.read()
        return SourceRead([_renamed(document, source.domain) for document in library.documents], library.description)
    found = find_files(source.path)
    rows = [file for file in found.files if _holds_rows(file, source.format)]
    if rows and len(rows) < len(found.files):
        plain = next(file for file in found.files if file not in rows)
        raise RequestError(
            f"{source.path} mixes rows ({rows[0].name}) and text ({plain.name}).", hint="Give each a source of its own."
        )
    read = _read_rows(found, source) if rows else _read_texts(found, source)
    if not read.records:
        raise RequestError(f"{source.path} has no text to learn from.", hint=read.description)
    return read


def _holds_rows(file: FoundFile, form: Format) -> bool:
    kind = kind_of(file.path)
    if kind in _NOT_READ:
        raise NotSupported(f"{file.path}: {_NOT_READ[kind]} files are not read yet.", hint="Write it as JSON Lines.")
    return form not in ("auto", "text") or (form == "auto" and kind in ROW_SUFFIXES)


def _read_texts(found: Found, source: Source) -> SourceRead:
    records: list[Record] = []
    empty = in_pieces = 0
    for file in found.files:
        text = read_text(file.path)
        if not text.strip():
            empty += 1
            continue
        pieces = list(cut(text))
        in_pieces += len(pieces) > 1
        for number, piece in enumerate(pieces):
            if piece.strip():
                name = f"{file.name}[{number}]" if len(pieces) > 1 else file.name
                records.append(Document(name, source.domain or file.folder, piece))
    notes = _notes(found, empty, "empty")
    if in_pieces:
        notes.append(f"{in_pieces} above 64 KiB cut at blank lines")
    return SourceRead(records, _described(source, found, "text", records, notes))


def _read_rows(found: Found, source: Source) -> SourceRead:
    records: list[Record] = []
    malformed = Malformed()
    empty: list[str] = []
    form: Format = source.format
    for row in _all_rows(found, malformed):
        if form == "auto":
            form = detect(row)
        try:
            record = parse(row, form, source.domain or (row.file.folder if form == "jsonl" else form))
        except RowError as error:
            malformed.add(row.file, row.line, f"{error} (read as {form})")
            continue
        if record is None:
            empty.append(row.id)
        else:
            records.append(record)
    malformed.check()
    notes = _notes(found, len(empty), "with nothing to learn", empty)
    return SourceRead(records, _described(source, found, form, records, notes))


def _all_rows(found: Found, malformed: Malformed) -> Iterator[Row]:
    for file in found.files:
        yield from read_rows(file, malformed)


def _notes(found: Found, empty: int, what: str, names: Sequence[str] = ()) -> list[str]:
    notes = []
    if empty:
        shown = f" ({', '.join(names[:3])}{', …' if empty > 3 else ''})" if names else ""
        notes.append(f"{empty} {what} left out{shown}")
    if found.passed_over:
        notes.append(f"{found.passed_over} passed over (hidden, or of no text type)")
    return notes


def _described(source: Source, found: Found, form: str, records: list[Record], notes: list[str]) -> str:
    size = sum(len(record.text.encode()) for record in records)
    count = f"{len(found.files)} file{'s' * (len(found.files) > 1)}"
    how = f"{form}{' (detected)' if source.format == 'auto' else ''}"
    line = f"{source.path}: {count}, {how}, {len(records):,} records, {format_bytes(size)}"
    return "; ".join([line, *notes])


def _renamed(document: Document, domain: str | None) -> Document:
    return Document(document.id, domain, document.text) if domain else document
