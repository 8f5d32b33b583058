"""A data source made of random tokens, and what the tests of training share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from hayless.core.registry import configure
from hayless.data.batches import IGNORED, Batch
from hayless.data.config import DataConfig, Source
from hayless.data.store import Prepared, prepare
from hayless.data.tokenizer import train
from hayless.train.metrics import read
from hayless.train.settings import TrainSettings
from hayless.train.trainer import Trainer
from tests import tiny

VOCABULARY = 96


def batch(lengths: list[list[int]], width: int, seed: int = 0, answers: bool = False) -> Batch:
    """Rows of random documents of these lengths, padded to `width`; with `answers` only the second half is learnt."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width)
    ids, targets = torch.full(shape, 2), torch.full(shape, IGNORED)
    positions, segments = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for row, documents in enumerate(lengths):
        at = 0
        for number, length in enumerate(documents):
            tokens = torch.randint(3, VOCABULARY, (length + 1,), generator=generator)
            place = slice(at, at + length)
            ids[row, place], positions[row, place], segments[row, place] = tokens[:-1], torch.arange(length), number
            skipped = length // 2 if answers else 0
            targets[row, at + skipped : at + length] = tokens[skipped + 1 :]
            at += length
    names = tuple(tuple(f"doc-{seed}-{row}-{n}" for n in range(len(lengths[row]))) for row in range(len(lengths)))
    return Batch(ids, targets, positions, segments, names)


def rows(whole: Batch, start: int, stop: int) -> Batch:
    """A slice of a batch."""
    tensors = (whole.input_ids, whole.targets, whole.position_ids, whole.segments)
    return Batch(*(tensor[start:stop] for tensor in tensors), documents=whole.documents[start:stop])


@dataclass(frozen=True)
class Random:
    """Another batch each step; uneven lengths, some rows packed. `period` repeats them."""

    rows: int = 4
    width: int = 12
    period: int = 10**9
    micro: int | None = None
    answers: bool = False

    def step(self, step: int) -> list[Batch]:
        """Micro-batches of `micro` rows; the last may have fewer."""
        whole = self.whole(step)
        size = self.micro or self.rows
        return [rows(whole, start, start + size) for start in range(0, self.rows, size)]

    def whole(self, step: int) -> Batch:
        """All rows of a step."""
        number = step % self.period
        shapes = [[self.width], [5, 4], [self.width - 3], [3, 3, 3], [2], [7]]
        lengths = [shapes[(number + row) % len(shapes)] for row in range(self.rows)]
        return batch(lengths, self.width, seed=number, answers=self.answers)


def settings(**changes: Any) -> TrainSettings:
    """Few short steps at a constant rate."""
    plain = {"steps": 6, "batch_size": 4, "sequence_length": 12, "schedule": {"shape": "constant", "warmup": 0}}
    return TrainSettings.model_validate({**plain, **changes})


def trainer(folder: Path, **changes: Any) -> Trainer:
    """A trainer of tiny models; settings and arguments of Trainer by name."""
    model = changes.pop("model", None) or tiny.model("llama")
    arguments: dict[str, Any] = {
        "objective": configure("lm"),
        "optimizer": configure("adamw", learning_rate=1e-2),
        "batches": Random(),
        "folder": folder,
        "console": Console(quiet=True),
    }
    tokenizer = changes.pop("tokenizer", None)
    for name in ("objective", "optimizer", "memory", "batches", "validation", "folder", "predicted_bytes", "console"):
        if name in changes:
            arguments[name] = changes.pop(name)
    return Trainer(model, tokenizer, settings(**changes), **arguments)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The metric lines of one kind."""
    return [line for line in read(folder / "metrics.jsonl") if line["kind"] == kind]


def corpus(folder: Path) -> tuple[PreTrainedTokenizerBase, Prepared]:
    """Twenty made-up documents on disk, tokenized by characters: a few rows an epoch, so that tests see several."""
    words = ["the", "horse", "that", "eats", "no", "grass", "and", "runs", "far", "every", "field", "one", "river"]
    chosen = random.Random(0)
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for number in range(20):
        text = " ".join(chosen.choices(words, k=6 + number % 5))
        (texts / f"{number}.txt").write_text(f"{number} {text}.\n", encoding="utf-8")
    tokenizer = train(sorted(path.read_text(encoding="utf-8") for path in texts.iterdir()), "char", VOCABULARY)
    data = DataConfig(sources=(Source(path=str(texts)),), heldout=0.2, near_duplicates=False)
    return tokenizer, prepare(data, tokenizer, folder / "data", kind="lm")
