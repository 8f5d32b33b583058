"""The runs of a sweep: N, D and loss of each. Runs whose losses cannot be compared are refused, by name."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.families import ledger_of
from hayless.core.roles import Role
from hayless.recipe.folder import RunFolder
from hayless.recipe.load import load
from hayless.recipe.prediction import starting_point
from hayless.recipe.schema import Recipe, TrainStep
from hayless.train import metrics

Counted = Literal["total", "non-embedding"]
"""What N counts: all parameters (Chinchilla's), or those outside of embeddings and head (Kaplan's)."""

_OUTSIDE = frozenset({Role.EMBEDDING, Role.POSITION, Role.TOKEN_TYPE, Role.HEAD})


@dataclass(frozen=True, slots=True)
class Run:
    """A model trained from nothing: its size, the tokens it was trained on, its held-out loss in nats a token."""

    name: str
    parameters: int
    non_embedding: int
    tokens: int
    loss: float
    layers: int
    width: int

    def size(self, counted: Counted) -> int:
        """N, as `counted`."""
        return self.parameters if counted == "total" else self.non_embedding


@dataclass(frozen=True, slots=True)
class Sweep:
    """Finished runs whose losses compare, and what was left out: a run that is not finished, and its state."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a loss depends on besides the model and its training."""

    data: str
    tokenizer: str
    documents: str
    context: str


_MEANING = {
    "data": "data",
    "tokenizer": "tokenizer",
    "documents": "held-out documents, or tokens of them",
    "context": "context when it was measured",
}


def read(paths: Sequence[Path]) -> Sweep:
    """The runs of folders: a run's, a study's, or one that holds runs.

    RequestError where there is no run, for runs of which N, D or the loss is not known, and for runs of different data,
    tokenizers, held-out documents or contexts.
    """
    found: list[tuple[Run, _Terms]] = []
    left_out, problems = [], []
    for place, name in _places(paths):
        state = place.status()["state"]
        if state != "done":
            left_out.append(f"{name}: {state}")
            continue
        try:
            found.append(_run(place, name))
        except RequestError as error:
            problems.append(f"{name}: {error.message}")
    if problems:
        raise RequestError(
            "These runs tell no loss of N parameters after D tokens:\n" + "\n".join(f"  - {line}" for line in problems),
            hint="Leave them out by naming the folders of the others.",
        )
    _same_terms(found)
    return Sweep(tuple(run for run, _ in found), tuple(left_out))


def _places(paths: Iterable[Path]) -> Iterator[tuple[RunFolder, str]]:
    """Each run's folder and name; a study's runs are called as in the study."""
    for path in paths:
        if not path.is_dir():
            raise RequestError(f"There is no folder {path}.", hint="Name a study's folder, such as runs/scaling.")
        inside = [path] if _holds_run(path) else sorted(child for child in path.iterdir() if _holds_run(child))
        if not inside:
            raise RequestError(f"{path} holds no run, and no folder of one.", hint="Runs have a recipe.yaml.")
        labels = _labels(path / "study.json")
        for folder in inside:
            yield RunFolder(folder), labels.get(folder.name, folder.name)


def _holds_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()


def _labels(path: Path) -> dict[str, str]:
    """Folder → label of a study's rows."""
    return _told(path, lambda found: {row["slug"]: row["label"] for row in found["rows"]}) if path.is_file() else {}


def _run(place: RunFolder, name: str) -> tuple[Run, _Terms]:
    recipe = load(place.recipe)
    if recipe.model.config is None:
        raise RequestError(f"it starts from {recipe.model.path}, and what that was trained on is not known.")
    if recipe.transforms:
        raise RequestError(f"it changes the model ({', '.join(config.method for config in recipe.transforms)}).")
    if recipe.model.task != "causal":
        raise RequestError("it learns scores, not text.")
    dims, _ = starting_point(recipe.model)
    rows = ledger_of(dims).rows
    run = Run(
        name,
        sum(row.elements for row in rows),
        sum(row.elements for row in rows if row.role not in _OUTSIDE),
        _tokens(place, recipe),
        _loss(place),
        dims.num_layers,
        dims.hidden_size,
    )
    return run, _terms(place, recipe, dims.max_positions)


def _tokens(place: RunFolder, recipe: Recipe) -> int:
    """Tokens trained on, by the last line that each training wrote."""
    total = 0
    for position, step in enumerate(recipe.steps):
        if isinstance(step, TrainStep):
            lines = metrics.read(place.training(position) / "metrics.jsonl")
            told = [line["tokens"] for line in lines if line.get("kind") == "train" and "tokens" in line]
            total += int(told[-1]) if told else 0
    if not total:
        raise RequestError("its metrics name no trained tokens.")
    return total


def _loss(place: RunFolder) -> float:
    if not place.measurements.is_file():
        raise RequestError("nothing was measured; its recipe needs a measure step.")
    value = _told(
        place.measurements, lambda found: next((row["value"] for row in found["rows"] if row["name"] == "loss"), None)
    )
    if value is None:
        raise RequestError("its loss was not measured; its recipe needs a measure step with quality.")
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise RequestError(f"its loss is {value}; allowed: a finite number above 0.")
    return float(value)


def _terms(place: RunFolder, recipe: Recipe, positions: int | None) -> _Terms:
    if not place.documents.is_file():
        raise RequestError("it has no documents.json, which says on what its loss was measured.")
    documents = _told(place.documents, lambda found: sorted((row["id"], row["tokens"], row["bytes"]) for row in found))
    content = recipe.model_dump(mode="json", include={"data": True, "model": {"tokenizer"}})
    measuring = recipe.measuring
    context = measuring.context if measuring and measuring.context else positions
    return _Terms(_key(content["data"]), _key(content["model"]["tokenizer"]), _key(documents), _key(context))


def _told(path: Path, part: Callable[[Any], Any]) -> Any:
    """A part of a JSON file. FileDamaged where the file does not have it."""
    try:
        return part(atomic.read_json(path))
    except (KeyError, TypeError):
        raise FileDamaged(f"{path} is not what its name says.", hint="Run it again with --fresh.") from None


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _same_terms(found: Sequence[tuple[Run, _Terms]]) -> None:
    """RequestError that names the runs which differ from most."""
    lines = []
    for field, meaning in _MEANING.items():
        values = [getattr(terms, field) for _, terms in found]
        usual = Counter(values).most_common(1)[0][0] if values else None
        odd = [run.name for (run, _), value in zip(found, values, strict=True) if value != usual]
        if odd:
            like = next(run.name for (run, _), value in zip(found, values, strict=True) if value == usual)
            lines.append(f"another {meaning} than {like}: {', '.join(odd)}")
    if lines:
        raise RequestError(
            "Losses of these runs cannot be compared:\n" + "\n".join(f"  - {line}" for line in lines),
            hint="A law is of one kind of text in one kind of tokens. Name only folders of runs that share them.",
        )
