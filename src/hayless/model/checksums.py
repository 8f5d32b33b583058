"""SHA-256 of the files of a saved folder, in `hayless_checksums.json` beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from hayless.core import atomic
from hayless.core.errors import FileDamaged

NAME = "hayless_checksums.json"
_LATER = {"README.md", "receipt.png"}
"""Files of a receipt, which is written into the folder after it was measured."""


def write(folder: Path) -> None:
    """Note the sums of all files under `folder`, but those of a receipt."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sums = {name: _sum(path) for name, path in files.items() if name != NAME and name not in _LATER}
    atomic.write_json(folder / NAME, {"algorithm": "sha256", "files": sums})


def verify(folder: Path) -> None:
    """Compare the files with what was noted, where it was. FileDamaged names a file that is missing or differs.

    Files that were added later are not looked at.
    """
    if not (folder / NAME).is_file():
        return
    noted = atomic.read_json(folder / NAME)
    if not isinstance(noted, dict) or noted.get("algorithm") != "sha256" or not isinstance(noted.get("files"), dict):
        raise FileDamaged(f"{folder / NAME} is not a list of SHA-256 sums.", hint="Copy the folder again.")
    for name, expected in noted["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise FileDamaged(f"{folder / NAME} lists {name!r}, which is not in the folder.")
        path = folder / name
        if not path.is_file():
            raise FileDamaged(f"{path} is missing, though {NAME} lists it.", hint="Copy the folder again.")
        if _sum(path) != expected:
            raise FileDamaged(
                f"{path} is not the file that was saved: its checksum differs.",
                hint=f"Copy the folder again; if you changed the file on purpose, delete {NAME}.",
            )


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
