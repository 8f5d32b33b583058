"""What modules of other domains are worth in a domain that none has learnt, given five examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.adapting.finding import FEW
from benchmarks.adapting.runs import LENGTH, Place, train
from benchmarks.adapting.shelf import Shelf, shelf
from benchmarks.adapting.ways import MODULE, ways
from transformers import PreTrainedModel

from hayless.core.measurement import Goal
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.data.batches import Batches
from hayless.data.corpus import Selection
from hayless.data.examples import Example
from hayless.data.store import TokenStore, store_of
from hayless.measure import interval
from hayless.measure.heldout import as_document
from hayless.measure.interval import Interval
from hayless.measure.quality import Document, quality
from hayless.measure.speed import Spread
from hayless.model import adapters
from hayless.model.transform import Context, apply
from hayless.study.bench.results import Row

ZERO, SINGLE, TUNED, OWN = "zero-shot", "best single module", "tuned on the five", "own module, held out"
HUB, NEAREST, OUTPUTS, WEIGHTS, TOKENS = (
    "LoraHub",
    "retrieved, the nearest",
    "retrieved, 3 mixed",
    "retrieved, 3 averaged",
    "retrieved, per token",
)
AGAINST = (HUB, NEAREST, OUTPUTS, WEIGHTS, TOKENS, TUNED, ZERO, OWN)
_GOALS = {HUB: Goal(op="<=", value=0), OUTPUTS: Goal(op="<=", value=0)}
_STEPS, _ROWS, _TRIES = 20, 2, 40
"""Updates on the five, and their rows; weights that LoraHub tries."""


def losses(name: str, place: Place) -> dict[str, Any]:
    """Nats of the held-out documents of a module's task, by who adapts to it without any module of its domain."""
    here = shelf(place)
    domain = name.partition("-")[2]
    others = [each for each in here.names if each.partition("-")[2] != domain]
    few = here.learnt(name)[:FEW]
    data = here.data(name)
    store = store_of(Selection(list(few), "sft", ""), here.tokenizer, Path(mkdtemp(prefix="hayless-")) / "few")
    library = str(here.library(others).folder)
    texts = tuple(each.text for each in few)

    def retrieved(**options: Any) -> PreTrainedModel:
        return _with(here, configure("retrieve", library=library, examples=texts, **options))

    made: dict[str, Callable[[], PreTrainedModel]] = {
        ZERO: here.model,
        SINGLE: lambda: _single(here, others, store),
        HUB: lambda: _with(here, _hub(here, others, few)),
        NEAREST: lambda: retrieved(mix="one"),
        OUTPUTS: lambda: retrieved(top=3),
        WEIGHTS: lambda: retrieved(top=3, mix="weights"),
        TOKENS: lambda: retrieved(per="token", top=3),
        TUNED: lambda: _tuned(here, store),
        OWN: lambda: _module(here, name),
    }
    nats = {who: _nats(make(), data.test, store.begin) for who, make in made.items()}
    return {"nats": nats, "sizes": [float(each.bytes) for each in data.test]}


def rows(found: Mapping[str, dict[str, Any]], model: str) -> Iterator[Row]:
    """Means over tasks, and differences to the best single module with the paired 95% interval."""
    work = (
        f"{FEW} examples of a task in a domain held out, modules of the other domains, {model}: the mean of"
        f" {len(found)} tasks, held-out documents"
    )
    for who in (SINGLE, *AGAINST):
        mean = _mean([(each["nats"][who], None, each["sizes"]) for each in found.values()])
        yield Row(work, who, "bits per byte", "bits/byte", _spread(mean))
        if who != SINGLE:
            beyond = _mean([(each["nats"][who], each["nats"][SINGLE], each["sizes"]) for each in found.values()])
            metric = f"beyond the {SINGLE}, and its 95% interval"
            yield Row(work, who, metric, "bits/byte", _spread(beyond), _GOALS.get(who))


def _mean(tasks: list[tuple[list[float], list[float] | None, list[float]]]) -> Interval:
    """The mean over tasks of bits a byte, or of differences; documents of all tasks are drawn together."""
    above: list[float] = []
    for mine, others, sizes in tasks:
        whole = math.log(2) * sum(sizes) * len(tasks)
        above += [(one - other) / whole for one, other in zip(mine, others or [0.0] * len(mine), strict=True)]
    return interval.ratio(above, [1 / len(above)] * len(above))


def _spread(found: Interval) -> Spread:
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return Spread(found.value, low, high)


def _with(here: Shelf, config: MethodConfig) -> PreTrainedModel:
    model = here.model()
    apply(model, [config], Context(tokenizer=here.tokenizer))
    return model


def _hub(here: Shelf, names: list[str], few: list[Example]) -> MethodConfig:
    asked = tuple({"prompt": each.prompt, "answer": each.output} for each in few)
    return configure("lorahub", modules=tuple(str(here.folder(name)) for name in names), examples=asked, steps=_TRIES)


def _module(here: Shelf, name: str) -> PreTrainedModel:
    model = here.model()
    adapters.read(here.folder(name)).put_on(model)
    return model


def _single(here: Shelf, names: list[str], store: TokenStore) -> PreTrainedModel:
    """The module with which the few cost least."""
    documents = [as_document(store[place]) for place in range(len(store))]
    costs = {name: sum(_nats(_module(here, name), documents, store.begin)) for name in names}
    return _module(here, min(costs, key=lambda name: costs[name]))


def _tuned(here: Shelf, store: TokenStore) -> PreTrainedModel:
    way = ways(here.place.model)[MODULE]
    model = here.model()
    assert way.transform is not None, "modules are adapters"
    apply(model, [way.transform])
    batches = Batches(store, sequence_length=LENGTH, batch_size=_ROWS)
    train(model, way, way.rate, "sft", batches, _STEPS, 0)
    return model


def _nats(model: PreTrainedModel, documents: list[Document], begin: int | None) -> list[float]:
    return [row.nats for row in quality(model, documents, begin=begin, batch_size=16).documents]
