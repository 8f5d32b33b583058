"""Documents of plain text, and the files they come from.

A text file is one document. A file above `COLLECTION_BYTES` is taken for a collection and cut at blank lines (else at
line ends) into documents of about `PIECE_BYTES`, so that a corpus in one file can have a held-out part.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hayless.core.errors import FileDamaged, RequestError, bad_value

COLLECTION_BYTES = 65_536
PIECE_BYTES = 8_192

_SUFFIXES = (
    ".txt .text .md .rst .tex .csv .tsv .html .xml .yaml .yml .toml .ini .cfg .py .pyi .c .h .cc .cpp .hpp .cu .cuh"
    " .rs .go .java .js .ts .sh .sql .r .jl .rb .pl .lua .swift .kt .scala .hs .ml .lisp .el"
)
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())
TABLE_SUFFIXES = frozenset({".parquet", ".arrow"})
ROW_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"}) | TABLE_SUFFIXES
_ABOUT_TABLES = frozenset({"dataset_info.json", "dataset_dict.json", "state.json"})
"""What the datasets library writes beside its tables."""
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True, slots=True)
class Document:
    """A text to learn from. `id` is a name that means the same on every machine; the held-out split hashes it."""

    id: str
    domain: str
    text: str


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a source: where it is, its name relative to the source, and the name of its folder.

    `unit` is what its rows are counted in: lines, or rows where it has no lines.
    """

    path: Path
    name: str
    folder: str
    unit: Literal["line", "row"] = "line"

    def at(self, number: int) -> str:
        """A place in the file, in words."""
        return f"{self.path}, {self.unit} {number}"


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a source in a fixed order, and how many others a folder held (hidden or of no text type)."""

    files: tuple[FoundFile, ...]
    passed_over: int = 0


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, a trailing `.gz` not counted."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def find_files(pattern: str) -> Found:
    """The files that a file name, a folder or a glob pattern (with `**`) stands for.

    Raises RequestError that says what was looked for when nothing is there.
    """
    if not pattern.strip():
        raise bad_value("path", pattern, allowed="a file, a folder or a glob pattern")
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        if not path.is_file():
            raise RequestError(f"{pattern} is not a regular file.", hint="Give a file, a folder or a glob pattern.")
        return Found((_named(path),))
    if not glob.has_magic(pattern):
        raise RequestError(f"There is no file or folder {pattern} (in {Path.cwd()}).", hint="Check the path.")
    root = _fixed_part(path)
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
    # A link to a folder above makes a pattern with ** match the same file again and again.
    files = list({match.resolve(): match for match in reversed(matches) if match.is_file()}.values())[::-1]
    if not files:
        raise RequestError(
            f"No file matches {pattern} (looked in {root.resolve()}{'' if root.is_dir() else ', which is not there'}).",
            hint="Quote patterns in the shell; ** crosses folders.",
        )
    return Found(tuple(_named(file, root) for file in files))


def checksum(path: Path) -> bytes:
    """SHA-256 of a file as it lies on disk; RequestError where it cannot be read."""
    with _readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, plain or gzipped; a byte order mark is dropped.

    RequestError names the file and the first byte that is not UTF-8; FileDamaged a gzip file that is not whole.
    """
    with _readable(path):
        content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise FileDamaged(f"{path} is not a whole gzip file: {error}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at position {error.start} (line {line}).",
            hint="Convert it first, for example with: iconv -f latin1 -t utf-8",
        ) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from None


def cut(text: str) -> Iterator[str]:
    """`text` itself, or, when it is longer than `COLLECTION_BYTES`, pieces that together are the text."""
    if len(text) <= COLLECTION_BYTES // 4 or len(text.encode()) <= COLLECTION_BYTES:
        yield text
        return
    start = 0
    while len(text) - start > PIECE_BYTES:
        end = _cut_at(text, start)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut_at(text: str, start: int) -> int:
    """Where the piece from `start` ends: after a blank line, else a line end, else in the middle of a line."""
    low, high = start + PIECE_BYTES // 2, min(start + 2 * PIECE_BYTES, len(text))
    wanted = start + PIECE_BYTES
    blank = _BLANK_LINES.search(text, wanted, high) or _BLANK_LINES.search(text, low, wanted)
    if blank:
        return blank.end()
    line = text.find("\n", wanted, high)
    if line < 0:
        line = text.rfind("\n", low, wanted)
    return line + 1 if line >= 0 else wanted


def _in_folder(root: Path) -> Found:
    files, passed_over = [], 0
    tables = any(path.suffix == ".arrow" for path in root.rglob("*"))
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            continue
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        hidden |= tables and path.name in _ABOUT_TABLES
        if hidden or not path.is_file() or kind_of(path) not in TEXT_SUFFIXES | ROW_SUFFIXES:
            passed_over += 1
        else:
            files.append(_named(path, root))
    if not files:
        raise RequestError(
            f"The folder {root} has no text files ({passed_over} others).",
            hint="Looked for .txt, .md, source code, .json, .jsonl, .parquet; a glob pattern takes files of any name.",
        )
    return Found(tuple(files), passed_over)


def _named(path: Path, root: Path | None = None) -> FoundFile:
    """A file with the name its documents get. What follows a `#` in a name is not part of it when data is split."""
    name = path.name if root is None else path.relative_to(root).as_posix()
    folder = path.resolve().parent.name
    try:
        f"{name}{folder}".encode()
    except UnicodeEncodeError:
        raise RequestError(f"The file name {name!r} is not UTF-8.", hint="Rename the file.") from None
    return FoundFile(path, name.replace("#", "%23"), folder, "row" if kind_of(path) in TABLE_SUFFIXES else "line")


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob pattern before its first wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
