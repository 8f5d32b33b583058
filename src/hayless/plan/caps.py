"""The recommender put to the test: its first recipe run under a hard cap, for models of many sizes and many budgets.

Each cell runs the recipe's training step in a fresh process whose memory is capped at the budget less the CUDA
context. Where the recommender says that nothing fits, what would need least is tried all the same. A recipe's later
micro-batches hold what the second one does, so that an update here has two at most.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from hayless.core.devices import Device
from hayless.core.errors import HaylessError
from hayless.core.families import dims_of
from hayless.measure.process import FreshProcess
from hayless.plan.memory import CONTEXT_BYTES, usual_sequence
from hayless.plan.recommend import Choice, advise, budgeted
from hayless.plan.ways import settings_of

WORKER = "hayless.train.capped"
SHAPES: Mapping[str, str] = {
    "1B": "llama-1b",
    "3B": "llama-3b",
    "7B": "llama-7b",
    "13B": "llama-13b",
    "32B": "qwen2.5-32b",
}
"""Size → the preset of that shape."""
BUDGETS = tuple(gigabytes * 10**9 for gigabytes in (8, 12, 16, 24, 48))
ROWS, UPDATES, DOCUMENTS = 32, 2, 4
"""Rows of an update that the recommender is asked for; updates that are run; documents a row."""
TIMEOUT = 300.0
"""Seconds that a cell may take."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Cell:
    """A model in a budget: the first that is recommended, or, not `advised`, the refused one that needs least."""

    size: str
    config: Mapping[str, Any]
    budget: int
    choice: Choice
    advised: bool

    @property
    def name(self) -> str:
        """`7B in 12 GB`."""
        return f"{self.size} in {self.budget / 1e9:g} GB"

    def asked(self, device: str) -> dict[str, Any]:
        """What the worker is asked."""
        choice = self.choice
        return {
            "config": dict(self.config),
            "dtype": choice.way.ledger.dims.dtype,
            "device": device,
            "settings": {
                "steps": 1,
                "batch_size": choice.micro_batch * min(choice.accumulation, 2),
                "micro_batch_size": choice.micro_batch,
                "sequence_length": choice.sequence,
                "precision": choice.way.precision,
            },
            "transforms": [settings_of(config) for config in choice.way.transforms],
            "optimizer": settings_of(choice.way.optimizer),
            "memory": [settings_of(config) for config in choice.memory],
            "documents": DOCUMENTS,
            "cap_bytes": self.budget - CONTEXT_BYTES,
            "updates": UPDATES,
        }


@dataclass(frozen=True, slots=True)
class Capped:
    """What came of a cell: `found` has what the worker says; `failed` why there is nothing."""

    cell: Cell
    found: Mapping[str, Any]
    failed: str = ""

    @property
    def ran_out(self) -> bool:
        """Whether a recommended recipe did not fit."""
        return self.cell.advised and self.found.get("fits") is False

    @property
    def wrongly_refused(self) -> bool:
        """Whether what is said not to fit did."""
        return not self.cell.advised and self.found.get("fits") is True

    @property
    def used_share(self) -> float | None:
        """The share of the budget that tensors and the context used at the peak; None where it did not run through."""
        return (self.found["peak_bytes"] + CONTEXT_BYTES) / self.cell.budget if self.found.get("fits") else None


def cells(on: Device, shapes: Mapping[str, Mapping[str, Any]], budgets: Sequence[int]) -> list[Cell]:
    """A cell for every shape (name → config) in every budget, by what the recommender says for a device like `on`."""
    found = []
    for size, config in shapes.items():
        dims = dims_of(config)
        for budget in budgets:
            advice = advise(
                dims,
                [],
                budgeted(on, budget),
                batch=ROWS,
                sequence=usual_sequence(dims),
                tokens=10**8,
                shorten=True,
            )
            choice = advice.fitting[0] if advice.fitting else advice.least
            if choice is not None:
                found.append(Cell(size, config, budget, choice, bool(advice.fitting)))
    return found


def run(
    asked: Sequence[Cell], device: str, free: int, *, at_once: int = 4, until: float | None = None, say: Say = print
) -> list[Capped]:
    """Every cell in a fresh process on torch's `device`, `at_once` side by side as far as their budgets fit in `free`
    bytes, the longest first; none is begun after `until` seconds. They come back in the order in which they are given.
    """
    end = None if until is None else time.monotonic() + until
    waiting = sorted(asked, key=lambda cell: -cell.choice.micro_batch * cell.choice.sequence / cell.choice.rate)
    running: dict[Future[Capped], int] = {}
    found = {cell.name: Capped(cell, {}, "not run: out of time") for cell in asked}
    idle: deque[FreshProcess] = deque()
    with ThreadPoolExecutor(at_once) as pool, ExitStack() as stack:
        while waiting or running:
            if end is not None and time.monotonic() > end:
                waiting = []
            room = free - sum(running.values())
            fits = next((cell for cell in waiting if cell.budget <= room or not running), None)
            if fits is not None and len(running) < at_once:
                while len(idle) < min(at_once, len(waiting)):
                    # Workers import while others run.
                    idle.append(stack.enter_context(FreshProcess(WORKER)))
                waiting.remove(fits)
                running[pool.submit(_one, fits, device, idle.popleft())] = fits.budget
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                done = future.result()
                found[done.cell.name] = done
                say(f"{done.cell.name}: {done.cell.choice.name}: {_said(done)}")
    return list(found.values())


def _one(cell: Cell, device: str, process: FreshProcess) -> Capped:
    try:
        return Capped(cell, process.ask(cell.asked(device), TIMEOUT))
    except HaylessError as error:
        return Capped(cell, {}, error.message)


def _said(done: Capped) -> str:
    """The outcome in words."""
    if done.failed:
        return done.failed
    if not done.found["fits"]:
        return ("ran out: " if done.cell.advised else "refused, and does not fit: ") + done.found["reason"]
    verdict = "fits" if done.cell.advised else "refused, but fits"
    return f"{verdict}, {done.used_share:.1%} of the budget used, {done.found['seconds']:.0f} s"
