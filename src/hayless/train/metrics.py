"""`metrics.jsonl`: what a run reported, one JSON object a line, each step once however often the run was resumed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from hayless.core import atomic
from hayless.core.errors import WorkError

Kind = Literal["train", "validation", "sample", "event"]


class MetricsLog:
    """Appends lines to a file. A figure that is not finite is written as null, as JSON has no other word for it."""

    def __init__(self, path: Path, after: int) -> None:
        """Open the log of a run that has done `after` steps; lines of later steps are cut (they will come again)."""
        self.path = path
        _cut(path, after)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: Kind, step: int, fields: Mapping[str, Any]) -> None:
        """Append one line. WorkError where the disk is full."""
        line = {"kind": kind, "step": step, **{name: _finite(value) for name, value in fields.items()}}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise WorkError(f"{self.path} could not be written: {error.strerror}.", hint="Free disk space.") from error

    def sync(self) -> None:
        """Bring all lines to the disk, so that a checkpoint never knows of a step that the log lost."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. A line that did not get onto a full disk was reported when it was written."""
        with suppress(OSError):
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
    return lines


def _cut(path: Path, after: int) -> None:
    if path.is_file():
        kept = [line for line in read(path) if line["step"] <= after]
        atomic.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
