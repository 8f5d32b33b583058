"""Every module's task asked for, and served by others, several processes side by side; kept in one file."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.adapting import composing, finding
from benchmarks.adapting.runs import Kept, Place, settle
from benchmarks.adapting.shelf import names_of

from hayless.core import atomic
from hayless.core.measurement import Machine
from hayless.measure import machine
from hayless.study.bench.results import Row

FILE = "library.json"


def measure(place: Place, *, at_once: int, until: float, say: Callable[[str], object]) -> bool:
    """Measure with the modules of the place, and keep what is found; True where all is. RequestError without modules.

    No task begins after `until` (of `time.monotonic`).
    """
    names = names_of(place)
    about = {"shared": place.shared, "machine": machine.describe().model_dump(mode="json")}
    found: dict[str, Any] = {}
    left, running = list(names), dict[Future[dict[str, Any]], str]()
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        while True:
            while left and len(running) < at_once and time.monotonic() < until:
                name = left.pop(0)
                running[pool.submit(_of, name, place)] = name
            if not running:
                return not left
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                found[name] = future.result()
                atomic.write_json(place.folder / FILE, {**about, "tasks": found})
                say(f"{len(found)} of {len(names)}: {name}")


def results(folder: Path) -> tuple[list[Row], Machine]:
    """What a file says, and the machine it was measured on. RequestError without the runs that trained the modules."""
    content, shared = atomic.read_json(folder / FILE), Kept(folder).shared
    every, model = content["tasks"], f"trained {shared['model']}, modules of {shared['steps']} steps"
    found = {name: each["ranks"] for name, each in every.items()}
    rows = [*finding.rows(found, model), *composing.rows({name: each["losses"] for name, each in every.items()}, model)]
    return rows, Machine.model_validate(content["machine"])


def _of(name: str, place: Place) -> dict[str, Any]:
    settle(place.device)
    return {"ranks": finding.ranks(name, place), "losses": composing.losses(name, place)}
