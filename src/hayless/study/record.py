"""What a run's folder says, read as it is: finished, stopped half way or damaged. No torch.

Nothing here raises for what a file holds: what cannot be read is left out and said in the receipt's `problems`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hayless.core import atomic
from hayless.core.errors import FileDamaged
from hayless.recipe.receipt import Receipt, recipe_of
from hayless.train import metrics

MOST_POINTS = 400
_MOST_SAMPLES = 24
_MOST_LETTERS = 4000
_NUMBERS = (int, float)  # and not bool, which is an int too


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model wrote after `prompt` at a step of training."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Documents:
    """The loss of each held-out document, by id: nats, predicted tokens, bytes."""

    rows: Mapping[str, tuple[float, int, int]]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as tables, pictures and pages show it.

    `curves` maps a metric's name (`loss`, `validation_loss`, `learning_rate`, …) to points (step, value), thinned to a
    few hundred. `remark` says what the study adds: over budget, run beside others.
    """

    label: str
    folder: Path
    receipt: Receipt
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    documents: Documents | None = None
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    remark: str = ""
    over_budget: bool = False

    @property
    def failed(self) -> bool:
        """True for a run that is not done, whatever the reason."""
        return self.receipt.state != "done"

    @property
    def reason(self) -> str:
        """Why the run is not done."""
        states = {"new": "It has not run.", "running": "It runs still, or was ended without a word."}
        return "" if not self.failed else self.receipt.reason or states.get(self.receipt.state, "No reason was noted.")


def read(folder: Path, label: str | None = None) -> RunRecord:
    """The record of one run. RequestError when `folder` holds no run."""
    problems: list[str] = []
    recipe = recipe_of(folder, problems) if folder.is_dir() else {}
    receipt = Receipt.from_run(folder, recipe)
    curves, samples = _metrics(folder, problems)
    documents = _documents(folder / "documents.json", problems)
    return RunRecord(
        label=label or receipt.name,
        folder=folder,
        receipt=receipt.model_copy(update={"problems": (*receipt.problems, *problems)}),
        recipe=recipe,
        recipe_text=(folder / "recipe.yaml").read_text(encoding="utf-8") if recipe else "",
        documents=documents,
        curves=curves,
        samples=samples,
    )


def read_all(folders: Iterable[Path]) -> list[RunRecord]:
    """The records of several runs; runs of one name are told apart by their folders."""
    records = [read(folder) for folder in folders]
    labels = [record.label for record in records]
    return [
        replace(record, label=f"{record.label} ({record.folder})") if labels.count(record.label) > 1 else record
        for record in records
    ]


def _documents(path: Path, problems: list[str]) -> Documents | None:
    if not path.exists():
        return None
    try:
        rows = {
            str(row["id"]): (float(row["nats"]), int(row["tokens"]), int(row["bytes"]))
            for row in atomic.read_json(path)
        }
    except (FileDamaged, OSError, TypeError, KeyError, ValueError) as error:
        problems.append(f"documents.json cannot be read, so there is no paired comparison: {error}")
        return None
    if not rows or not all(math.isfinite(nats) and tokens > 0 and size > 0 for nats, tokens, size in rows.values()):
        problems.append("documents.json has figures that are not finite and positive, so it is left out.")
        return None
    return Documents(rows)


def _metrics(folder: Path, problems: list[str]) -> tuple[dict[str, list[tuple[int, float]]], list[Sample]]:
    """Curves and samples of all training steps of a run, one after the other."""
    curves: dict[str, dict[int, float]] = {}
    samples: list[Sample] = []
    offset = 0
    for path in _metric_files(folder):
        last = offset
        for line in metrics.read(path):
            step = line["step"]
            last = max(last, offset + step)
            if line.get("kind") == "sample":
                prompt, text = (str(line.get(key, ""))[:_MOST_LETTERS] for key in ("prompt", "text"))
                samples.append(Sample(offset + step, prompt, text))
            elif line.get("kind") in ("train", "validation"):
                before = "validation_" if line["kind"] == "validation" else ""
                for key, value in line.items():
                    if type(value) in _NUMBERS and key != "step":
                        # A resumed run repeats the steps after its last checkpoint: the later line counts.
                        curves.setdefault(before + key, {})[offset + step] = float(value)
        offset = last
    kept = {
        name: thinned([(s, v) for s, v in sorted(points.items()) if math.isfinite(v)])
        for name, points in curves.items()
    }
    lost = sum(not math.isfinite(value) for points in curves.values() for value in points.values())
    if lost:
        problems.append(f"{lost} figures of training are not finite and are left out of the curves.")
    return {name: points for name, points in kept.items() if points}, samples[-_MOST_SAMPLES:]


def _metric_files(folder: Path) -> list[Path]:
    """The run's `metrics.jsonl`; where each training step keeps its own, those in the order of the steps."""
    own = folder / "metrics.jsonl"
    if own.exists():
        return [own]
    found = folder.glob("checkpoints/step-*/metrics.jsonl")
    return sorted(found, key=lambda path: (len(path.parent.name), path.parent.name))


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most `most` (2 or more) of the points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    stride = (len(points) - 1) / (most - 1)
    return [points[round(index * stride)] for index in range(most)]
