"""The folder of a run: what was asked, how far it got, what came out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError
from hayless.recipe import yaml
from hayless.recipe.schema import Recipe
from hayless.train.settings import RESUMABLE

_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run and its state."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def model(self) -> Path:
        """The model as it would be shipped."""
        return self.path / "model"

    @property
    def measurements(self) -> Path:
        """What was measured of `model`."""
        return self.path / "measurements.json"

    @property
    def documents(self) -> Path:
        """Loss of each held-out document, for paired comparisons."""
        return self.path / "documents.json"

    @property
    def data(self) -> Path:
        """Where data and tokenizers prepared for this run (or its study) are kept."""
        return self.path.parent / "data"

    @property
    def blocks(self) -> Path:
        """Where methods keep the blocks that they have finished, until the model is saved."""
        return self.path / "blocks"

    def training(self, step: int) -> Path:
        """Where the training at position `step` of the recipe keeps its checkpoints, metrics and result."""
        return self.path / "checkpoints" / f"step-{step}"

    def status(self) -> dict[str, Any]:
        """`state` (new, running, done, failed), `recipe` (its digest), `reason`, `step`, `seconds`.

        FileDamaged where the file is not such a status.
        """
        path = self.path / "status.json"
        if not path.exists():
            return {"state": "new"}
        found = atomic.read_json(path)
        if not isinstance(found, dict) or "state" not in found:
            raise FileDamaged(f"{path} is no status of a run.", hint="Start over with --fresh.")
        return found

    def set_status(self, state: str, **more: Any) -> None:
        """Write the state of the run."""
        atomic.write_json(
            self.path / "status.json", {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more}
        )

    def begin(self, recipe: Recipe, *, fresh: bool, by: str = "") -> bool:
        """Prepare the folder for `recipe`, carried out by a peer if it is named. True when a finished run of the very
        same is already there.

        RequestError when the folder holds another recipe's run and `fresh` was not asked for.
        """
        if fresh:
            self._clear()
        wanted = digest(recipe, by)
        status = self.status()
        if self.recipe.exists() and status.get("recipe") != wanted:
            raise RequestError(
                f"{self.path} holds a run of a different recipe.",
                hint="Give another --run-dir or name, or --fresh to delete it and start over.",
            )
        if status["state"] == "done":
            return True
        # The status first: a recipe without one would be taken for another run's.
        self.set_status("running", recipe=wanted, step=status.get("step", 0), seconds=status.get("seconds", 0.0))
        atomic.write_text(self.recipe, yaml.write(recipe.model_dump(mode="json", exclude_none=True)))
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second process. RequestError names the process that has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / _LOCK
        for _ in range(2):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                break
            except FileExistsError:
                holder = path.read_text(encoding="utf-8").strip()
                if _alive(holder):
                    raise RequestError(f"{self.path} is in use by process {holder.split()[0]}.") from None
                path.unlink(missing_ok=True)
        else:
            raise RequestError(f"{self.path} is in use by another process.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {psutil.Process().create_time()}")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Delete everything but the lock."""
        items = [item for item in self.path.iterdir() if item.name != _LOCK] if self.path.exists() else []
        if items and not self.recipe.exists() and not (self.path / "status.json").exists():
            raise RequestError(f"{self.path} is not a run's folder; it is left alone.", hint="Give another --run-dir.")
        for item in items:
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def digest(recipe: Recipe, by: str = "") -> str:
    """A hash of everything that decides what a recipe gives: settings that may change while it is resumed do not.

    `by` names the peer that carries it out, where it is not hayless.
    """
    content = recipe.model_dump(mode="json")
    for step in content["steps"]:
        for name in RESUMABLE & step.get("train", {}).keys():
            del step["train"][name]
    text = json.dumps(content, sort_keys=True) + by
    return hashlib.sha256(text.encode()).hexdigest()


def _alive(holder: str) -> bool:
    """Whether the process that wrote a lock still runs (its start time guards against a reused number)."""
    try:
        number, started = holder.split()
        return abs(psutil.Process(int(number)).create_time() - float(started)) < 1
    except (ValueError, psutil.Error):
        return False
