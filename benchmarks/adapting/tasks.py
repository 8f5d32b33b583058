"""Tasks that a model is adapted to: what they learn from, and which documents are held out.

Text of Python's library comes from the interpreter that runs; other data by `--input`. Held-out documents are halved:
one half chooses learning rates, the other is what results are of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.adapting import pieces

from hayless.core import atomic
from hayless.data import stdlib, stdlib_tasks
from hayless.data.config import DataConfig, Source
from hayless.data.corpus import Kind, corpus
from hayless.data.examples import Example, instruction
from hayless.data.split import position
from hayless.data.store import TokenStore, prepare
from hayless.measure.heldout import as_document
from hayless.measure.quality import Document
from hayless.model.load import load_tokenizer
from hayless.study.bench.inputs import given

HELD_OUT_TOKENS, LONGEST = 48_000, 384
"""Held-out documents are looked at up to so many tokens in all, and so many each."""


@dataclass(frozen=True, slots=True)
class Task:
    """`words` say what it is. `source` makes its data, given a folder to write to; `choice`: answers are one of two."""

    name: str
    words: str
    kind: Kind
    source: Callable[[Path], Source]
    domains: tuple[str, ...] = ()
    heldout: float = 0.2
    choice: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """A task's tokens to train on, and its held-out documents."""

    train: TokenStore
    validation: list[Document]
    test: list[Document]


def _library(path: Path) -> Source:
    return Source(builtin="stdlib")


def _order(path: Path) -> Source:
    """One answer of each pair of sentences and heaps of their words, which one by the hash of its name."""

    def rows() -> Iterator[dict[str, str]]:
        for pair in stdlib_tasks.preferences():
            whole = position(f"order/{pair.id}") < 0.5
            text = pair.chosen if whole else pair.rejected
            question = "Are these words a sentence, or in no order?"
            yield {"prompt": instruction(question, text), "completion": "sentence" if whole else "heap"}

    return _written(path / "order.jsonl", rows())


def _sst2(path: Path) -> Source:
    """Lines of a sentence, a tab and its label."""

    def rows() -> Iterator[dict[str, str]]:
        for line in given("sst2", "SST-2's training part, a sentence, a tab and 1 or 0 a line").open(encoding="utf-8"):
            text, _, label = line.rstrip("\n").rpartition("\t")
            answer = {"1": "positive", "0": "negative"}[label]
            yield {"prompt": instruction("Is this review positive or negative?", text), "completion": answer}

    return _written(path / "sst2.jsonl", rows())


TASKS = (
    Task(
        "instructions",
        "what a part of Python's library does, from its signature",
        "sft",
        lambda path: Source(builtin="stdlib_instructions"),
    ),
    Task("english", "topics and long docstrings of Python's library", "lm", _library, ("english",)),
    Task(
        "gsm8k",
        "answers of GSM8K in its format, calculator marks included",
        "sft",
        lambda path: Source(path=str(given("gsm8k", pieces.GSM8K))),
    ),
    Task("order", "whether words are a sentence or in no order, a choice of two", "sft", _order, choice=True),
    Task(
        "code",
        "top-level modules of Python's library",
        "lm",
        lambda path: Source(path=str(stdlib.places().library / "*.py"), domain="code"),
        heldout=0.3,
    ),
    Task("c", "headers in C", "lm", _library, ("c",), heldout=0.3),
    Task("sst2", "whether a review is positive or negative (SST-2)", "sft", _sst2, choice=True),
)


def _module(kind: str, domain: str) -> Task:
    name = f"{kind}-{domain}"
    return Task(
        name, f"{kind}: {domain}", "sft", lambda path: _written(path / f"{name}.jsonl", pieces.rows(kind, domain))
    )


MODULES = tuple(_module(kind, domain) for kind in pieces.KINDS for domain in pieces.DOMAINS)
"""What the modules of a library learn: every kind of task in every domain."""


def named(name: str) -> Task:
    """The task of that name."""
    return next(task for task in (*TASKS, *MODULES) if task.name == name)


@cache
def data(name: str, model: Path, folder: Path) -> Data:
    """A task's data for a model's tokenizer; `folder` keeps them. Unavailable where an input is not given."""
    task = named(name)
    found = prepare(_config(task, folder), load_tokenizer(model), folder / name, kind=task.kind)
    documents = [as_document(each) for each in found.heldout.sample(HELD_OUT_TOKENS, longest=LONGEST)]
    return Data(found.train, documents[::2], documents[1::2])


def examples(name: str, folder: Path) -> list[Example]:
    """What a task that learns from examples is trained on."""
    task = named(name)
    return [
        each for each in corpus(_config(task, folder), folder / name, kind=task.kind).train if isinstance(each, Example)
    ]


def _config(task: Task, folder: Path) -> DataConfig:
    made = folder / "sources"
    made.mkdir(parents=True, exist_ok=True)
    return DataConfig(sources=(task.source(made),), domains=task.domains, heldout=task.heldout)


def _written(path: Path, rows: Iterator[dict[str, str]]) -> Source:
    """The rows in a file, which is written once."""
    if not path.exists():
        atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))
