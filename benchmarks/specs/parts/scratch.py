"""A folder for what a benchmark makes on its way."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """It goes when the process ends."""
    found = Path(tempfile.mkdtemp(prefix="hayless-bench-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found
