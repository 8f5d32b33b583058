"""Does a library find the module of a task, given a few of the task's examples that the module never saw?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from benchmarks.adapting.runs import Place
from benchmarks.adapting.shelf import Shelf, shelf
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.beside import MIXTURE, PROTOTYPES
from hayless.core.measurement import Goal
from hayless.core.registry import configure
from hayless.measure import interval
from hayless.measure.speed import Spread
from hayless.methods.adapters.library.store import Library, Vector
from hayless.model.transform import Context, apply
from hayless.study.bench.results import Row

FEW = 5
"""Examples that are given at once."""
OURS, PLAIN, ARROW = "hayless modules search", "mean embedding", "PEFT's Arrow, votes of tokens"
_GOALS = {1: Goal(op=">=", value=85), 3: Goal(op=">=", value=95)}

Ranks = dict[str, list[int]]
"""By way to find: how many modules came before the right one, each time it was asked for."""


def ranks(name: str, place: Place) -> dict[str, Ranks]:
    """Of a module, by how many examples are given: `FEW`, or one."""
    here = shelf(place)
    texts = here.texts(here.data(name).validation)
    vectors = here.embedder.one_each(texts)
    votes = np.stack([_votes(here, text) for text in texts])
    found: dict[str, Ranks] = {}
    for count in (FEW, 1):
        starts = range(0, len(texts) - count + 1, count)
        together = [(vectors[start : start + count].mean(0), votes[start : start + count].sum(0)) for start in starts]
        found[str(count)] = {
            OURS: [_searched(here, vector).index(name) for vector, _ in together],
            PLAIN: [_nearest(here, vector).index(name) for vector, _ in together],
            ARROW: [_first(here, vote).index(name) for _, vote in together],
        }
    return found


def rows(found: Mapping[str, dict[str, Ranks]], model: str) -> Iterator[Row]:
    """Shares of right answers over all modules, with intervals that draw modules."""
    for count in (FEW, 1):
        examples = f"{count} examples" if count > 1 else "one example"
        work = f"the module of a task among {len(found)} of {model}, by {examples} that it has not seen"
        for top in (1, 3):
            metric = f"right among the first {top}"
            yield Row(work, "chance", metric, "%", Spread.single(100 * top / len(found)), better="higher")
            for way in (PLAIN, ARROW, OURS):
                asked = [each[str(count)][way] for each in found.values()]
                hits = [100.0 * sum(rank < top for rank in one) for one in asked]
                share = interval.ratio(hits, [float(len(one)) for one in asked])
                low, high = (share.value if end is None else end for end in (share.low, share.high))
                goal = _GOALS[top] if way == OURS and count == FEW else None
                yield Row(work, way, metric, "%", Spread(share.value, low, high), goal, better="higher")


def _searched(here: Shelf, vector: Vector) -> list[str]:
    return [each.module.name for each in _library(here.place).search(vector, len(here.names))]


def _nearest(here: Shelf, vector: Vector) -> list[str]:
    lengths = np.linalg.norm(here.vectors, axis=1) * np.linalg.norm(vector)
    return _first(here, here.vectors @ vector / lengths)


def _first(here: Shelf, scores: Sequence[float] | Vector) -> list[str]:
    return [here.names[place] for place in np.argsort(-np.asarray(scores), kind="stable")]


@cache
def _library(place: Place) -> Library:
    here = shelf(place)
    return here.library(here.names)


@torch.no_grad()
def _votes(here: Shelf, text: str) -> Vector:
    """How many tokens choose each module first, over all matrices (modules,)."""
    model, seen = _routed(here.place)
    seen.clear()
    ids = torch.tensor([here.tokenizer(text)["input_ids"]], device=model.device)
    model(input_ids=ids, use_cache=False)
    return torch.stack(seen).sum(0).cpu().numpy()


@cache
def _routed(place: Place) -> tuple[PreTrainedModel, list[Tensor]]:
    """The base under all modules with Arrow's routes, and a list that gets the votes at each matrix."""
    here, seen = shelf(place), list[Tensor]()
    model = here.model()
    context = Context(tokenizer=here.tokenizer)
    apply(model, [configure("retrieve", library=str(_library(place).folder), per="token", top=1)], context)

    def vote(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scores = F.linear(inputs[0], getattr(module, PROTOTYPES).weight).abs()
        seen.append(torch.bincount(scores.argmax(-1).flatten(), minlength=len(here.names)))

    for path, module in model.named_modules():
        if path.rpartition(".")[2] == MIXTURE:
            module.register_forward_pre_hook(vote)
    return model, seen
