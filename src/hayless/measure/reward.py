"""Scores of a reward model, and how often it ranks a pair of answers as people did.

Shapes: b rows (2i chosen, 2i + 1 rejected), s positions, h width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.data.batches import Batch
from hayless.decode.engine import evaluating
from hayless.measure.interval import Interval
from hayless.measure.quality import pairwise_accuracy


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a reward model gives the two answers of one pair."""

    id: str
    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The scores of pairs, and the share of pairs that are ranked as people did; ties count one half."""

    pairs: tuple[PairScores, ...]

    @property
    def accuracy(self) -> Interval:
        """RequestError where there are no pairs, WorkError for scores that are not finite."""
        return pairwise_accuracy([pair.chosen for pair in self.pairs], [pair.rejected for pair in self.pairs])

    def part(self, ids: Collection[str]) -> Ranking:
        """The same for some of the pairs."""
        return Ranking(tuple(pair for pair in self.pairs if pair.id in ids))


def ranking(model: PreTrainedModel, batches: Iterable[Batch]) -> Ranking:
    """Score every pair in batches of preferences, one answer a row. NotSupported for a model without a score head."""
    pairs: list[PairScores] = []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            found = scores(model, batch.to(model.device)).tolist()
            ids = [names[0].removesuffix("#chosen") for names in batch.documents[0::2]]
            pairs += map(PairScores, ids, found[0::2], found[1::2])
    return Ranking(tuple(pairs))


def reward_accuracy(model: PreTrainedModel, batches: Iterable[Batch]) -> Interval:
    """Pairwise accuracy over batches of preferences; raises what `ranking` and `Ranking.accuracy` raise."""
    return ranking(model, batches).accuracy


def scores(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The score (b,) of each row, read at its last token, in float32.

    (transformers' own pooling looks for the padding token, and goes wrong where that is also the end token.)
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise NotSupported(
            f"{type(model).__name__} gives no score; pairs of answers are ranked by a model with one output.",
            hint="Load it with model.task: reward.",
        )
    hidden_bsh = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    last_b = (batch.segments >= 0).sum(1) - 1
    return head(hidden_bsh[torch.arange(len(last_b), device=last_b.device), last_b]).squeeze(-1).float()
