"""Reading one source of a recipe's data: its files, the format they are in, and the records they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hayless.core.errors import RequestError
from hayless.core.units import format_bytes
from hayless.data import hub, stdlib, stdlib_tasks
from hayless.data.config import Format, Source
from hayless.data.documents import (
    ROW_SUFFIXES,
    Document,
    Found,
    FoundFile,
    checksum,
    cut,
    find_files,
    kind_of,
    read_text,
)
from hayless.data.examples import Record, detect, parse
from hayless.data.rows import Malformed, Row, RowError, read_rows


@dataclass(frozen=True, slots=True)
class SourceRead:
    """The records of a source in a fixed order, what was found, in words, and names of what has nothing to learn."""

    records: list[Record]
    description: str
    empty: tuple[str, ...] = ()


def fingerprint(source: Source) -> str:
    """SHA-256 over the content of everything the source would read, in hex."""
    digest = hashlib.sha256(source.model_dump_json().encode())
    if source.hub is not None:
        digest.update(hub.fingerprint(source).encode())
    elif source.path is None:
        digest.update(stdlib.fingerprint().encode())
    else:
        for file in find_files(source.path).files:
            digest.update(f"\0{file.name}\0".encode())
            digest.update(checksum(file.path))
    return digest.hexdigest()


def read_source(source: Source) -> SourceRead:
    """Read a source whole.

    Raises RequestError for paths that match nothing, files that are not UTF-8, rows that are malformed (with file and
    line) and a source without any text.
    """
    malformed = Malformed()
    if source.hub is not None:
        return _not_empty(source, _read_rows(hub.rows(source), None, source, malformed))
    if source.builtin is not None:
        return _built_in(source)
    assert source.path is not None, "the schema asks for one place"
    found = find_files(source.path)
    rows = [file for file in found.files if _holds_rows(file, source.format)]
    if rows and len(rows) < len(found.files):
        plain = next(file for file in found.files if file not in rows)
        raise RequestError(
            f"{source.path} mixes rows ({rows[0].name}) and text ({plain.name}).", hint="Give each a source of its own."
        )
    if not rows:
        return _not_empty(source, _read_texts(found, source))
    every = (row for file in found.files for row in read_rows(file, malformed))
    return _not_empty(source, _read_rows(every, found, source, malformed))


def first_record(source: Source) -> Record:
    """The first record of a source, which tells what it is for. Raises what `read_source` raises, of what it sees."""
    if source.path is not None:
        found = find_files(source.path)
        if not _holds_rows(found.files[0], source.format):
            return Document(found.files[0].name, source.domain or found.files[0].folder, "")
        malformed = Malformed()
        rows: Iterable[Row] = (row for file in found.files for row in read_rows(file, malformed))
    elif source.hub is not None:
        rows = hub.rows(source)
    else:
        return read_source(source).records[0]
    for row in rows:
        try:
            record = parse(row, detect(row) if source.format == "auto" else source.format, source)
        except RowError:
            break
        if record is not None:
            return record
    # Nothing, or something malformed, comes first: reading it whole says what.
    return read_source(source).records[0]


def _built_in(source: Source) -> SourceRead:
    """What comes with the interpreter."""
    if source.builtin == "stdlib":
        library = stdlib.read()
        records: list[Record] = list(library.documents)
        description = library.description
    else:
        made = stdlib_tasks.instructions if source.builtin == "stdlib_instructions" else stdlib_tasks.preferences
        records = list(made())
        size = sum(len(record.text.encode()) for record in records)
        description = f"{source.builtin}: {len(records):,} records, {format_bytes(size)}, from Python's own library"
    renamed = [replace(record, domain=source.domain) for record in records] if source.domain else records
    return SourceRead(renamed, description)


def _not_empty(source: Source, read: SourceRead) -> SourceRead:
    if not read.records:
        raise RequestError(f"{source.name} has no text to learn from.", hint=read.description)
    return read


def _holds_rows(file: FoundFile, form: Format) -> bool:
    return form not in ("auto", "text") or (form == "auto" and kind_of(file.path) in ROW_SUFFIXES)


def _read_texts(found: Found, source: Source) -> SourceRead:
    records: list[Record] = []
    empty: list[str] = []
    in_pieces = 0
    for file in found.files:
        text = read_text(file.path)
        if not text.strip():
            empty.append(file.name)
            continue
        pieces = list(cut(text))
        in_pieces += len(pieces) > 1
        for number, piece in enumerate(pieces):
            if piece.strip():
                name = f"{file.name}[{number}]" if len(pieces) > 1 else file.name
                records.append(Document(name, source.domain or file.folder, piece))
    notes = _notes(found, empty)
    if in_pieces:
        notes.append(f"{in_pieces} above 64 KiB cut at blank lines")
    return SourceRead(records, _described(source, found, "text", records, notes), tuple(empty))


def _read_rows(rows: Iterable[Row], found: Found | None, source: Source, malformed: Malformed) -> SourceRead:
    """Rows as records; `malformed` gathers the lines that are no rows as well. `found` are their files, if any."""
    records: list[Record] = []
    empty: list[str] = []
    form: Format = source.format
    for row in rows:
        if form == "auto":
            form = detect(row)
        try:
            record = parse(row, form, source)
        except RowError as error:
            malformed.add(row.file, row.line, f"{error} (read as {form})")
            continue
        if record is None:
            empty.append(row.id)
        else:
            records.append(record)
    malformed.check()
    return SourceRead(records, _described(source, found, form, records, _notes(found, empty)), tuple(empty))


def _notes(found: Found | None, empty: Sequence[str]) -> list[str]:
    notes = []
    if empty:
        shown = f"{', '.join(empty[:3])}{', …' if len(empty) > 3 else ''}"
        notes.append(f"{len(empty)} with nothing to learn left out ({shown})")
    if found and found.passed_over:
        notes.append(f"{found.passed_over} passed over (hidden, or of no text type)")
    return notes


def _described(source: Source, found: Found | None, form: str, records: list[Record], notes: list[str]) -> str:
    size = sum(len(record.text.encode()) for record in records)
    count = "hub dataset"
    if found:
        tables = {f"{kind_of(file.path)[1:]} " for file in found.files if file.unit == "row"}
        count = f"{len(found.files)} {'and '.join(sorted(tables))}file{'s' * (len(found.files) > 1)}"
    how = f"{form}{' (detected)' if source.format == 'auto' else ''}"
    line = f"{source.name}: {count}, {how}, {len(records):,} records, {format_bytes(size)}"
    return "; ".join([line, *notes])
