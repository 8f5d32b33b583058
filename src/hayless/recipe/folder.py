"""The folder of a run: what was asked, how far it got, what came out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hayless.core import atomic
from hayless.core.errors import RequestError
from hayless.recipe import yaml
from hayless.recipe.schema import Recipe


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

    def checkpoints(self, step: int) -> Path:
        """Where the training at position `step` of the recipe keeps its checkpoints and metrics."""
        return self.path / "checkpoints" / f"step-{step}"

    def status(self) -> dict[str, Any]:
        """`state` (new, running, done, failed), `reason`, `step`, `seconds`."""
        path = self.path / "status.json"
        return atomic.read_json(path) if path.exists() else {"state": "new"}

    def set_status(self, state: str, **more: Any) -> None:
        """Write the state of the run."""
        atomic.write_json(
            self.path / "status.json", {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more}
        )

    def begin(self, recipe: Recipe, *, fresh: bool) -> bool:
        """Prepare the folder for `recipe`. True when a finished run of the very same recipe is already there.

        RequestError when the folder holds another recipe's run and `fresh` was not asked for.
        """
        if fresh:
            self._clear()
        wanted = digest(recipe)
        status = self.status()
        if self.recipe.exists() and status.get("recipe") != wanted:
            raise RequestError(
                f"{self.path} holds a run of a different recipe.",
                hint="Give another --run-dir or name, or --fresh to delete it and start over.",
            )
        if status["state"] == "done":
            return True
        atomic.write_text(self.recipe, yaml.write(recipe.model_dump(mode="json", exclude_none=True)))
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second process. RequestError names the process that has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
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
        import shutil

        if self.path.exists() and any(self.path.iterdir()) and not self.recipe.exists():
            raise RequestError(f"{self.path} is not a run's folder; it is left alone.", hint="Give another --run-dir.")
        for item in self.path.glob("*"):
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def digest(recipe: Recipe) -> str:
    """A hash of everything a recipe asks for."""
    content = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _alive(holder: str) -> bool:
    """Whether the process that wrote a lock still runs (its start time guards against a reused number)."""
    try:
        number, started = holder.split()
        return abs(psutil.Process(int(number)).create_time() - float(started)) < 1
    except (ValueError, psutil.Error):
        return False
