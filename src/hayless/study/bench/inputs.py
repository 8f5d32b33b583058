"""Files and folders that a benchmark needs and no clone has: trained models, other people's checkpoints.

They are given by name (`--input NAME=PATH` of benchmarks/run.py) and travel in the environment, so that fresh processes
have them too.
"""

from __future__ import annotations

import os
from pathlib import Path

from hayless.core.errors import bad_value
from hayless.study.bench.spec import Unavailable

_PREFIX = "HAYLESS_BENCH_"


def give(text: str) -> None:
    """Take `NAME=PATH` as an input of this process and its children. RequestError where nothing is there."""
    name, separator, path = text.partition("=")
    if not name.isidentifier() or not separator or not Path(path).exists():
        raise bad_value("input", text, allowed="NAME=PATH of a file or folder that is there")
    os.environ[_PREFIX + name.upper()] = str(Path(path).resolve())


def given(name: str, what: str) -> Path:
    """The path given as `name`. Unavailable, saying `what` it should be, where there is none."""
    path = os.environ.get(_PREFIX + name.upper())
    if path is None or not Path(path).exists():
        raise Unavailable(f"needs --input {name}=PATH: {what}")
    return Path(path)
