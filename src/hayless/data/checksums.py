"""Noticing that prepared data on disk was altered or truncated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hayless.core.errors import FileDamaged

AGAIN = "Delete the folder; it is made again from the data."


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file of `folder` that exists, in hex."""
    return {name: _sha256(folder / name) for name in names if (folder / name).exists()}


def check(folder: Path, expected: Mapping[str, str]) -> None:
    """FileDamaged naming the first file that is missing or is not what it was when `checksums` looked."""
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file():
            raise FileDamaged(f"{path} is missing.", hint=AGAIN)
        if _sha256(path) != checksum:
            raise FileDamaged(
                f"{path} does not have the SHA-256 it was written with: altered or truncated.", hint=AGAIN
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
