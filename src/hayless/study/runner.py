"""Running a study: every row in a fresh process, failures kept as rows, stopped and resumed at any moment. No torch.

A finished row of the same recipe is kept; an unfinished one goes on from its checkpoint. A row that starts from what
another row made waits for it, and is run anew when that one was made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from hayless.core import atomic
from hayless.core.errors import FileDamaged, HaylessError
from hayless.core.units import format_seconds
from hayless.measure import machine
from hayless.recipe import yaml
from hayless.recipe.folder import RunFolder, digest
from hayless.recipe.load import load as load_recipe
from hayless.recipe.prediction import predict
from hayless.recipe.receipt import Receipt
from hayless.recipe.schema import Recipe, TrainStep
from hayless.study.process import Process
from hayless.study.results import FILE, Outcome, Outcomes, Results, State, read_outcomes, read_study
from hayless.study.schema import Budget, Contender, Study, contenders, reads

_POLL_SECONDS = 0.1
_RUNTIME_BYTES = 600_000_000
"""What Python, torch and transformers take before there is a model."""
_HEADROOM = 1.15


def run(study: Study, *, fresh: bool = False, console: Console | None = None) -> Results:
    """Run what is not done yet of `study` and return all its results.

    `fresh` runs every row anew. Progress goes to `console` (standard error if None). RequestError for a study that
    cannot be right, before anything runs; a row that fails is a row of the results with its reason.
    """
    found = contenders(study)
    folder = study.path
    with RunFolder(folder).lock():
        _Runner(study, found, folder, fresh, console or Console(stderr=True)).run()
    return read_study(folder)


@dataclass(slots=True)
class _Job:
    """A row to run: where, what for, and after which others."""

    contender: Contender
    outcome: Outcome
    folder: Path
    recipe: Path
    needs: list[_Job]
    fresh: bool
    _floor_bytes: int | None = None

    @property
    def floor_bytes(self) -> int:
        """Bytes it takes at least; asked for when the rows it starts from are there."""
        if self._floor_bytes is None:
            self._floor_bytes = _floor(self.contender.recipe)
        return self._floor_bytes

    @property
    def settled(self) -> bool:
        return self.outcome.state in ("done", "failed")


class _Runner:
    def __init__(self, study: Study, found: list[Contender], folder: Path, fresh: bool, console: Console) -> None:
        self.study = study
        self.folder = folder
        self.console = console
        self.budget = study.budget
        self.running: dict[str, tuple[_Job, Process]] = {}
        self.largest = 0
        self.jobs = self._jobs(found, fresh)
        baseline = study.baseline or study.rows[0].label
        self.outcomes = Outcomes(
            name=study.name, baseline=baseline, budget=study.budget, rows=[job.outcome for job in self.jobs]
        )

    def run(self) -> None:
        """Start rows as they may start, until all are settled."""
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}", markup=False),
            console=self.console,
        )
        reused = sum(job.settled for job in self.jobs)
        if reused:
            self.console.print(Text(f"{reused} of {len(self.jobs)} rows are done already.", style="dim"))
        with progress, _terminated_as_exit():
            bar = progress.add_task(self.study.name, total=len(self.jobs), doing="")
            try:
                while True:
                    self._start_what_may()
                    self._show(progress, bar)
                    if not self.running and all(job.settled for job in self.jobs):
                        break
                    time.sleep(_POLL_SECONDS)
                    self._collect()
            finally:
                self._stop_all()
                self._show(progress, bar)
                self.outcomes.write(self.folder)

    def _jobs(self, found: list[Contender], fresh: bool) -> list[_Job]:
        earlier: dict[str, Outcome] = {}
        if (self.folder / FILE).exists():
            with contextlib.suppress(FileDamaged):
                earlier = {outcome.slug: outcome for outcome in read_outcomes(self.folder).rows}
        jobs: list[_Job] = []
        keys: dict[str, str] = {}
        for contender in found:
            path = self.folder / "recipes" / f"{contender.slug}.yaml"
            atomic.write_text(path, yaml.write(contender.recipe.model_dump(mode="json", exclude_none=True)))
            recipe = load_recipe(path)
            needs = [job for job in jobs if reads(recipe, job.folder)]
            asked = digest(recipe, contender.peer)
            parts = [asked, *(keys[job.contender.slug] for job in needs)]
            keys[contender.slug] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            outcome = Outcome(
                label=contender.label,
                slug=contender.slug,
                row=contender.row.label,
                key=keys[contender.slug],
                published=contender.row.published,
                source=contender.row.source,
                budgeted=contender.row.budgeted,
            )
            job = _Job(contender, outcome, self.folder / contender.slug, path, needs, fresh)
            self._carry_over(job, earlier.get(contender.slug), asked)
            jobs.append(job)
        return jobs

    def _carry_over(self, job: _Job, before: Outcome | None, asked: str) -> None:
        """Take over what an earlier session did for the same recipe; anything else in the folder is done anew."""
        if job.fresh:
            return
        try:
            status = RunFolder(job.folder).status()
        except FileDamaged:
            status = {"state": "damaged"}
        same = before is not None and before.key == job.outcome.key and all(not needed.fresh for needed in job.needs)
        same = same or (before is None and not job.needs)
        if status["state"] == "new" and not (job.folder / "recipe.yaml").exists():
            return
        if not same or status.get("recipe") != asked:
            job.fresh = True
            return
        if before is not None:
            job.outcome.seconds, job.outcome.at_once = before.seconds, before.at_once
        if status["state"] == "done":
            job.outcome.state = "done"

    def _start_what_may(self) -> None:
        for job in self.jobs:
            if job.outcome.state != "waiting":
                continue
            failed = [needed for needed in job.needs if needed.outcome.state == "failed"]
            if failed:
                self._settle(job, "failed", f"It needs {failed[0].contender.label!r}, which failed.")
            elif self._spent(job):
                self._settle(job, "failed", _over_time(self.budget))
            elif all(needed.outcome.state == "done" for needed in job.needs) and self._room_for(job):
                self._start(job)

    def _start(self, job: _Job) -> None:
        log = self.folder / "logs" / f"{job.contender.slug}.log"
        process = Process.start(job.recipe, job.folder, log, fresh=job.fresh, peer=job.contender.peer)
        self.running[job.contender.slug] = (job, process)
        job.outcome.state = "running"
        for other, _ in self.running.values():
            other.outcome.at_once = max(other.outcome.at_once, len(self.running))
        self.outcomes.write(self.folder)

    def _room_for(self, job: _Job) -> bool:
        """Whether `job` may start beside what runs: it is allowed, on the CPU, and its memory fits.

        What a row will need is the most that any row of this study has needed; the first therefore runs alone.
        """
        if not self.running:
            return True
        alone = any(_on_accelerator(other) for other in [job, *(other for other, _ in self.running.values())])
        if len(self.running) >= self.study.parallel or alone or not self.largest:
            return False
        expected = max(job.floor_bytes, self.largest)
        growing = sum(
            max(0, max(other.floor_bytes, self.largest) - process.resident_bytes())
            for other, process in self.running.values()
        )
        return machine.free_memory_bytes() > _HEADROOM * (expected + growing)

    def _collect(self) -> None:
        for slug, (job, process) in list(self.running.items()):
            code = process.poll()
            if code is None and not self._spent(job, process):
                continue
            del self.running[slug]
            self.largest = max(self.largest, process.peak_bytes)
            if code is None:
                process.end()
                job.outcome.seconds += process.seconds
                self._settle(job, "failed", _over_time(self.budget))
                continue
            job.outcome.seconds += process.seconds
            job.outcome.exit_code = code
            if _finished(job.folder):
                self._settle(job, "done", "" if code == 0 else f"Done, but then: {process.failure(code)}")
            else:
                self._settle(job, "failed", process.failure(code))

    def _spent(self, job: _Job, process: Process | None = None) -> bool:
        limit = self.budget.seconds if self.budget and job.outcome.budgeted else None
        return limit is not None and job.outcome.seconds + (process.seconds if process else 0.0) >= limit

    def _settle(self, job: _Job, state: State, reason: str) -> None:
        job.outcome.state, job.outcome.reason = state, reason
        if state == "done" and job.outcome.published:
            Receipt.from_run(job.folder).with_published(job.outcome.published, job.outcome.source).write(job.folder)
        self.outcomes.write(self.folder)
        words = f"{job.contender.label}: {state}"
        words += f" in {format_seconds(job.outcome.seconds)}" if job.outcome.seconds else ""
        self.console.print(Text(words + (f". {reason}" if reason else ""), style="red" if state == "failed" else ""))

    def _stop_all(self) -> None:
        """End what still runs, leaving folders from which it goes on."""
        for job, process in self.running.values():
            process.popen.terminate()
            job.outcome.reason = "It was stopped; running the study again goes on with it."
        for job, process in self.running.values():
            try:
                process.end()
            except KeyboardInterrupt:
                process.end(grace=0)
            job.outcome.seconds += process.seconds
            job.outcome.state = "stopped"
        self.running.clear()

    def _show(self, progress: Progress, bar: TaskID) -> None:
        words = [f"{job.contender.label}: {process.last_line()}"[:70] for job, process in self.running.values()]
        settled = sum(job.settled for job in self.jobs)
        progress.update(
            bar, completed=settled, doing=words[0] if len(words) == 1 else f"{len(words)} at once" if words else ""
        )


def _floor(recipe: Recipe) -> int:
    """Bytes a recipe takes at least: the runtime, the weights, and gradients and two moments where it trains.

    The shape of a model on the hub is not looked up for this.
    """
    if recipe.model.path is not None and not Path(recipe.model.path).is_dir():
        return _RUNTIME_BYTES
    try:
        ledger = predict(recipe).ledger
    except HaylessError:
        return _RUNTIME_BYTES
    trains = any(isinstance(step, TrainStep) for step in recipe.steps)
    return _RUNTIME_BYTES + ledger.weight_bytes + (12 * ledger.trainable if trains else 0)


def _on_accelerator(job: _Job) -> bool:
    """Whether a row may use a GPU, whose memory this process does not watch."""
    device = job.contender.recipe.device
    return device.startswith(("cuda", "mps")) or (device == "auto" and shutil.which("nvidia-smi") is not None)


def _finished(folder: Path) -> bool:
    try:
        return RunFolder(folder).status()["state"] == "done"
    except (FileDamaged, KeyError, TypeError):
        return False


def _over_time(budget: Budget | None) -> str:
    return f"It was stopped at the budget of {format_seconds(budget.seconds or 0.0)}." if budget else ""


@contextlib.contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM into an exit, so that the rows are ended too. Only the main thread may set handlers."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
