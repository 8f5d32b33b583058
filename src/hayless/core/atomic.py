"""Writing files so that a reader sees the old content or the new, never half."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from hayless.core.errors import FileDamaged, WorkError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside and rename it into place. WorkError when the disk is full; the old file then stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise WorkError(f"{path} could not be written: {error.strerror or error}.", hint="Free disk space.") from error


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for text, as UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` for plain data, as JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; FileDamaged when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileDamaged(f"{path} is not valid JSON: {error}.") from error


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, renamed to `path` when the block ends well, removed when it does not.

    An existing folder at `path` is moved aside, replaced and then deleted, so that at any moment one whole version is
    there (under its name, or under `.NAME.old` if the machine stops between two renames: see `recover`).
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _sync_tree(partial)
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise WorkError(f"{path} could not be written: {error.strerror or error}.", hint="Free disk space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def recover(path: Path) -> None:
    """Undo an interrupted replacement of the folder `path`: if only the old version is there, give it its name back."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        _sync(path)
    _sync(root)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
