"""Doing what a recipe says, in a folder from which it goes on when it was stopped.

Changes of the model are repeated from the start when a run goes on (they are pure functions of the recipe); training
goes on from its last checkpoint, and finished training gives its weights back. In the end the model is saved to
`model/`, and what is measured is that folder, loaded in a fresh process.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core import atomic
from hayless.core.errors import HaylessError, NotSupported, RequestError
from hayless.core.measurement import Measurement
from hayless.core.method import MethodConfig, Need
from hayless.core.registry import method_of
from hayless.data.corpus import Kind
from hayless.measure.machine import describe
from hayless.measure.memory import MemoryMeter
from hayless.measure.saved import measure_saved
from hayless.measure.weights import parameter_rows
from hayless.model.merging import merge_adapters
from hayless.model.save import save_model
from hayless.model.transform import Change, Context, apply
from hayless.recipe.calibrate import calibration
from hayless.recipe.folder import RunFolder, digest
from hayless.recipe.learn import TrainFigures, data_kind, learn, rehearse, training_rows
from hayless.recipe.prediction import Prediction, predict
from hayless.recipe.progress import shown
from hayless.recipe.receipt import Receipt
from hayless.recipe.schema import ApplyStep, Recipe, TrainStep
from hayless.recipe.start import Start


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder and its receipt. The model is in `folder / "model"`."""

    folder: Path
    receipt: Receipt


class Maker(Protocol):
    """Another library that makes the model which a recipe asks for, to be compared with."""

    name: str
    """What it is called, with its version."""
    key: str
    """What it is called, whatever its version."""

    def make(self, start: Start, place: RunFolder, console: Console) -> list[Measurement]:
        """Make the model, save it to `place.model`, and say what that took. The data is prepared already."""
        ...


def run(
    recipe: Recipe,
    folder: Path | str | None = None,
    *,
    fresh: bool = False,
    console: Console | None = None,
    by: Maker | None = None,
) -> Run:
    """Run `recipe` in `folder` (`runs/NAME` if None) and return what came of it; a finished run is not done again.

    `fresh` deletes what an earlier run left there. Progress goes to `console` (standard error if None). Raises what the
    steps raise; the folder then says why, and the same call goes on from the last checkpoint. `by` makes the model in
    hayless's place (from the start each time).
    """
    place = RunFolder(Path(folder) if folder is not None else Path("runs") / recipe.name)
    with place.lock():
        if not place.begin(recipe, fresh=fresh, by=by.key if by else ""):
            _Execution(recipe, place, console or Console(stderr=True), by).run()
        return Run(place.path, Receipt.from_run(place.path))


class _Execution:
    """One attempt at a run."""

    def __init__(self, recipe: Recipe, place: RunFolder, console: Console, by: Maker | None) -> None:
        self.recipe = recipe
        self.place = place
        self.console = console
        self.by = by
        self._digest = digest(recipe, by.key if by else "")
        self._started = time.monotonic()
        self._before = float(place.status().get("seconds", 0.0))

    def run(self) -> None:
        with self._state_kept(), shown(self.console) as progress:
            start = Start(self.recipe, self.place.data, progress, self._say)
            self._prepare_data(start)
            if self.by is not None:
                rows = self.by.make(start, self.place, self.console) + self._measured(start)
            else:
                words = _tokenizer(start)
                rows = self._own(start, Context(tokenizer=words, seed=self.recipe.seed, progress=progress))
            content = {
                "machine": describe().model_dump(mode="json"),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "rows": [row.model_dump(mode="json", exclude={"error"}) for row in rows],
            }
            atomic.write_json(self.place.measurements, content)
        Receipt.from_run(self.place.path).write(self.place.path)

    def _prepare_data(self, start: Start) -> None:
        for kind in dict.fromkeys(_kinds(self.recipe)):
            start.data(kind)

    def _own(self, start: Start, context: Context) -> list[Measurement]:
        """Hayless's own work, with what was predicted of it."""
        prediction = predict(self.recipe, "cuda" if start.device.type == "cuda" else "cpu")
        for step in self.recipe.steps:
            if isinstance(step, TrainStep):
                # What libraries set up on first use is not the model's memory.
                rehearse(step.train, start)
        return [_with_prediction(row, prediction) for row in self._work(start, prediction, context)]

    def _work(self, start: Start, prediction: Prediction, context: Context) -> list[Measurement]:
        meter = _meter(start)
        if not start.holds_packed:
            self._say(f"{start.device} does not hold the whole model: it is changed on the CPU before it trains.")
        model, changes = start.packed_model(context)
        self._tell(changes)
        predicted = prediction.figures.get("train_peak_bytes")
        trained: list[TrainFigures] = []
        for position, step in enumerate(self.recipe.steps):
            self._note("running", step=position)
            if position < len(start.packers):
                continue
            if isinstance(step, ApplyStep):
                own = self._for_method(step.apply, model, start, position, context)
                self._tell(apply(model, [step.apply], own))
            elif isinstance(step, TrainStep):
                model.to(start.device)  # type: ignore[arg-type]
                figures = learn(
                    model,
                    step.train,
                    start,
                    self.place.training(position),
                    meter=meter,
                    predicted_bytes=None if predicted is None else int(predicted),
                    console=self.console,
                )
                trained.append(figures)
        self._save(model, start)
        shutil.rmtree(self.place.blocks, ignore_errors=True)
        rows = training_rows(trained) + parameter_rows(model)
        # Measuring needs the memory: the model is loaded again, in another process.
        del model
        return rows + self._measured(start)

    def _tell(self, changes: Iterable[Change]) -> None:
        for change in changes:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in change.figures.items() if "/" not in name)
            self._say(f"{change.method}: {len(change.changed)} modules" + (f"; {figures}" if figures else ""))
            for path, reason in change.skipped.items():
                self._say(f"{change.method}: {path} left out: {reason}")

    def _for_method(
        self, config: MethodConfig, model: PreTrainedModel, start: Start, position: int, context: Context
    ) -> Context:
        """The context of one method: with text where it needs some, and a folder where it keeps what is finished."""
        if Need.CALIBRATION not in method_of(config).needed(config):
            return context
        text = calibration(start, model, context.progress, self._say)
        return replace(context, calibration=text, folder=self.place.blocks / f"step-{position}")

    def _save(self, model: PreTrainedModel, start: Start) -> None:
        saving = self.recipe.saving
        if saving.merge:
            self._tell(merge_adapters(model, None if saving.merge is True else saving.merge))
        tokenizer = _tokenizer(start)
        if tokenizer is None:
            self._say("The model has no tokenizer; none is saved with it.")
        save_model(model, self.place.model, tokenizer=tokenizer, dtype=saving.dtype)

    def _measured(self, start: Start) -> list[Measurement]:
        settings = self.recipe.measuring
        if settings is None:
            return []
        kind = _kinds(self.recipe)[-1]
        self._say(f"Measuring {self.place.model} in a fresh process.")
        return measure_saved(
            self.place.model,
            start.data(kind).heldout,
            settings,
            decoding=self.recipe.decoding.method if self.recipe.decoding else None,
            device=str(start.device),
            documents=self.place.documents,
            reliability=self.place.path,
        )

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """The status says how the block ended."""
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            words = str(error) if isinstance(error, HaylessError) else f"{type(error).__name__}: {error}"
            self._note("failed", reason=words)
            raise
        self._note("done")

    def _note(self, state: str, **more: object) -> None:
        seconds = self._before + time.monotonic() - self._started
        peer = {"peer": self.by.name} if self.by else {}
        self.place.set_status(state, recipe=self._digest, seconds=round(seconds, 3), **peer, **more)

    def _say(self, message: str) -> None:
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)


def _kinds(recipe: Recipe) -> list[Kind]:
    """The kinds of data that the steps of a recipe read, the one that is measured last."""
    found = [data_kind(step.train) for step in recipe.steps if isinstance(step, TrainStep)]
    if recipe.measuring is not None and not found:
        found.append("preference" if recipe.model.task == "reward" else "lm")
    return found


def _meter(start: Start) -> MemoryMeter | None:
    """A meter of the device's memory, before the model; None where it cannot be read."""
    try:
        return MemoryMeter(start.device)
    except NotSupported:
        return None


def _tokenizer(start: Start) -> PreTrainedTokenizerBase | None:
    """The tokenizer to save with the model; None where the model has none and nothing needed one."""
    try:
        return start.tokenizer
    except RequestError:
        if start.uses_text:
            raise
        return None


def _with_prediction(row: Measurement, prediction: Prediction) -> Measurement:
    predicted = prediction.figures.get(row.name)
    return row if predicted is None else row.model_copy(update={"predicted": predicted})
