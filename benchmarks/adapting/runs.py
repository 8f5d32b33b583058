"""Doing runs, several processes side by side on one device, and keeping what is done in one file."""

from __future__ import annotations

import copy
import math
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from benchmarks.adapting import pieces, tasks
from benchmarks.adapting.search import Run, wanted
from benchmarks.adapting.ways import MODULE, UNTRAINED, Way, ways
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.core.measurement import Machine
from hayless.core.registry import configure, method_of
from hayless.data.batches import Batches
from hayless.data.corpus import Kind
from hayless.measure import machine
from hayless.measure.quality import quality
from hayless.model import adapters
from hayless.model.load import load_model
from hayless.model.transform import Context, apply
from hayless.study.bench.spec import Unavailable
from hayless.train.attention import attention
from hayless.train.randomness import seed_all
from hayless.train.schedule import rate as share_at
from hayless.train.settings import TrainSettings
from hayless.train.step import update
from hayless.train.update import make_updater

FILE, MODULES = "runs.json", "modules"
BATCH, LENGTH = 8, 256
"""Rows of a step and tokens of a row."""


@dataclass(frozen=True, slots=True)
class Place:
    """What all runs of a file share; where they are kept, and where data and modules are made."""

    model: Path
    folder: Path
    data: Path
    device: str
    steps: int

    @property
    def shared(self) -> dict[str, Any]:
        """What runs of one file must agree on."""
        return {"model": self.model.name, "device": self.device.partition(":")[0], "steps": self.steps}


def do(run: Run, place: Place) -> dict[str, Any]:
    """One run from the base: what it trained, and its held-out documents' losses; why it failed, where it did."""
    settle(place.device)
    start = time.monotonic()
    found: dict[str, Any] = asdict(run)
    data = tasks.data(run.task, place.model, place.data)
    model = copy.deepcopy(base(place))
    seed_all(run.seed)
    try:
        if run.way != UNTRAINED:
            way = ways(place.model)[run.way]
            if way.transform is not None:
                apply(model, [way.transform], Context(seed=run.seed))
            found["rate"] = run.rate(way.rate)
            found["trained"] = sum(item.numel() for item in model.parameters() if item.requires_grad)
            batches = Batches(data.train, sequence_length=LENGTH, batch_size=BATCH, seed=run.seed)
            train(model, way, found["rate"], tasks.named(run.task).kind, batches, place.steps, run.seed)
        documents = data.validation if run.searching else data.test
        choice = tasks.named(run.task).choice
        losses = quality(model, documents, begin=data.train.begin, batch_size=16, judging=choice)
    except (NotSupported, WorkError) as error:
        return {**found, "failed": error.message}
    except RuntimeError as error:
        # What torch raises, for one run of many.
        return {**found, "failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
    found["bits"] = losses.bits_per_byte.value
    if not run.searching:
        found["nats"] = [float(f"{row.nats:.6g}") for row in losses.documents]
    if choice:
        # Answers differ from their first token on.
        found["right"] = sum(judged.right[0] for judged in losses.judged) / len(losses.judged)
    if run.way == MODULE:
        target = place.data / MODULES / run.task
        target.mkdir(parents=True, exist_ok=True)
        adapters.write(model, way.transform, target, str(place.model))
    return {**found, "seconds": time.monotonic() - start}


def train(model: PreTrainedModel, way: Way, rate: float, kind: Kind, batches: Batches, steps: int, seed: int) -> None:
    """So many steps, each on the rows that its seed gives it, the same for every way."""
    settings = TrainSettings(
        steps=steps,
        batch_size=batches.batch_size,
        sequence_length=batches.sequence_length,
        clip_norm=way.clip,
        seed=seed,
    )
    config = configure(kind)
    objective = method_of(config).load()(config)
    decay = {"weight_decay": 0.0} if way.optimizer == "adamw" else {}
    optimizer = configure(way.optimizer, learning_rate=rate, **decay)
    with ExitStack() as stack:
        updater = make_updater(model, settings.precision, optimizer)
        stack.callback(updater.close)
        stack.enter_context(attention(model, settings, packed=True))
        model.train()
        for step in range(steps):
            share = share_at(settings.schedule, step, steps)
            update(model, objective, updater, [batches.at(step)], settings, step=step + 1, share=share)


@cache
def base(place: Place) -> PreTrainedModel:
    """The model that runs begin with, in float32."""
    return load_model(place.model, dtype="float32", device=place.device)


@cache
def settle(device: str) -> None:
    """One thread a process; a GPU's products of float32 in TF32."""
    torch.set_num_threads(1)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")


class Kept:
    """The runs of a folder that are done, in the order in which they were."""

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        """RequestError where the folder has runs of another model, device or length than `place` says.

        `missing` says why a task has no data; `held_out` has names and bytes of the documents that results are of.
        """
        self.path = folder / FILE
        content = atomic.read_json(self.path) if self.path.exists() else None
        if content is None and place is None:
            raise RequestError(f"{folder} has no {FILE}.", hint="Do the runs first: python -m benchmarks.adapting run.")
        self.shared: dict[str, Any] = content["shared"] if content else place.shared  # type: ignore[union-attr]
        if place is not None and self.shared != place.shared:
            raise RequestError(
                f"{self.path} has runs of {self.shared}, not of {place.shared}.", hint="Give another folder."
            )
        self.machine = Machine.model_validate(content["machine"]) if content else machine.describe()
        self.missing: dict[str, str] = dict(content["missing"]) if content else {}
        self.held_out: dict[str, list[tuple[str, int]]] = dict(content["held_out"]) if content else {}
        self.rows: list[dict[str, Any]] = content["runs"] if content else []

    @property
    def bits(self) -> dict[Run, float]:
        """Bits a byte of each run, infinity for those that failed."""
        return {_run(row): row.get("bits", math.inf) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        """Note a run that is done, on disk at once."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        about = {"shared": self.shared, "machine": self.machine.model_dump(mode="json"), "missing": self.missing}
        atomic.write_json(self.path, {**about, "held_out": self.held_out, "runs": self.rows})


def all_of(
    pairs: list[tuple[str, str]],
    place: Place,
    kept: Kept,
    *,
    at_once: int,
    until: float,
    say: Callable[[str], object],
) -> bool:
    """Do the runs of tasks and ways that are not done, the first pairs first; True where all are done.

    No run begins after `until` (of `time.monotonic`).
    """
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        there = _there(pairs, place, kept, pool)
        kept.write()
        running: dict[Future[dict[str, Any]], Run] = {}
        while True:
            asked = _next(there, kept.bits, set(running.values()))
            while len(running) < at_once and time.monotonic() < until and (run := next(asked, None)):
                running[pool.submit(do, run, place)] = run
            if not running:
                return next(_next(there, kept.bits, set()), None) is None
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                row = future.result()
                kept.add(row)
                say(f"{len(kept.rows)}: {_said(row)}")


def pack(place: Place) -> None:
    """Put the modules beside the runs, an archive for each kind of task: few and small files are easily carried."""
    for kind in pieces.KINDS:
        made = sorted((place.data / MODULES).glob(f"{kind}-*"))
        if made:
            with tarfile.open(place.folder / f"{MODULES}-{kind}.tar", "w") as archive:
                for path in made:
                    archive.add(path, f"{MODULES}/{path.name}")


def _there(pairs: list[tuple[str, str]], place: Place, kept: Kept, pool: ProcessPoolExecutor) -> list[tuple[str, str]]:
    """The pairs whose task has its data; of the others' tasks the reason is noted."""
    making = {name: pool.submit(_prepare, name, place) for name, _ in pairs}
    for name, future in making.items():
        made = future.result()
        if isinstance(made, str):
            kept.missing[name] = made
        else:
            kept.missing.pop(name, None)
            kept.held_out[name] = made
    return [pair for pair in pairs if pair[0] not in kept.missing]


def _prepare(task: str, place: Place) -> list[tuple[str, int]] | str:
    """Make a task's data: names and bytes of the documents that results are of, or why there are none."""
    try:
        return [(each.id, each.bytes) for each in tasks.data(task, place.model, place.data).test]
    except Unavailable as error:
        return error.message


def _next(pairs: list[tuple[str, str]], found: Mapping[Run, float], running: set[Run]) -> Iterator[Run]:
    for task, way in pairs:
        yield from (run for run in wanted(task, way, found) if run not in running)


def _run(row: dict[str, Any]) -> Run:
    return Run(row["task"], row["way"], row["halves"], row["seed"])


def _said(row: dict[str, Any]) -> str:
    name = f"{row['task']}, {row['way']}, rate {row.get('rate', 0):g}, seed {row['seed']}"
    return f"{name}: " + (row.get("failed") or f"{row['bits']:.4f} bits a byte in {row['seconds']:.1f} s")
