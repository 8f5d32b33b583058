"""Scores of a reward model: how often it ranks a pair of answers as people did, and how sure it is when it does.

By Bradley and Terry's model of choices (1952), answer w of a pair is preferred to l with probability σ(r_w − r_l).

Shapes: b rows (2i chosen, 2i + 1 rejected), s positions, h width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported, WorkError
from hayless.core.progress import Progress, no_progress
from hayless.data.batches import Batch
from hayless.decode.engine import evaluating
from hayless.measure import interval
from hayless.measure.calibration import PAIR_BINS, Calibration, Judged, calibration
from hayless.measure.interval import Interval


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a reward model gives the two answers of one pair."""

    id: str
    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The scores of pairs, and what follows from them; a tie counts as one half of a right ranking."""

    pairs: tuple[PairScores, ...]

    @property
    def accuracy(self) -> Interval:
        """The share of pairs ranked as people did. RequestError where there are none, WorkError for scores that are not
        finite."""
        return self._mean([_win(margin) for margin in self._margins()])

    @property
    def loss(self) -> Interval:
        """−log σ(r_w − r_l) in nats a pair: what a reward model is trained on. Raises as `accuracy`."""
        return self._mean([float(np.logaddexp(0, -margin)) for margin in self._margins()])

    @property
    def brier(self) -> Interval:
        """Brier's score (1950), (1 − σ(r_w − r_l))² a pair: 0 at best, 1/4 for a model that never prefers either.
        Raises as `accuracy`."""
        return self._mean([_sigmoid(-margin) ** 2 for margin in self._margins()])

    @property
    def calibration(self) -> Calibration:
        """How sure the model is of its choices, beside how often they are people's. Raises as `accuracy`."""
        judged = [
            Judged(id=pair.id, confidence=(_sigmoid(abs(margin)),), right=(_win(margin),))
            for pair, margin in zip(self.pairs, self._margins(), strict=True)
        ]
        return calibration(judged, *PAIR_BINS)

    @staticmethod
    def _mean(figures: Sequence[float]) -> Interval:
        return interval.ratio(figures, [1.0] * len(figures))

    def _margins(self) -> list[float]:
        margins = [pair.chosen - pair.rejected for pair in self.pairs]
        if not all(map(math.isfinite, margins)):
            raise WorkError(
                "A reward is not a finite number.", hint="The weights are damaged, or overflow: try float32."
            )
        return margins

    def part(self, ids: Collection[str]) -> Ranking:
        """The same for some of the pairs."""
        return Ranking(tuple(pair for pair in self.pairs if pair.id in ids))


def ranking(model: PreTrainedModel, batches: Sequence[Batch], *, progress: Progress = no_progress) -> Ranking:
    """Score every pair in batches of preferences, one answer a row. NotSupported for a model without a score head."""
    pairs: list[PairScores] = []
    with evaluating(model), torch.inference_mode():
        for number, batch in enumerate(batches):
            progress("measuring", number, len(batches))
            found = scores(model, batch.to(model.device)).tolist()
            ids = [names[0].removesuffix("#chosen") for names in batch.documents[0::2]]
            pairs += map(PairScores, ids, found[0::2], found[1::2])
    progress("measuring", len(batches), len(batches))
    return Ranking(tuple(pairs))


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


def _win(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def _sigmoid(x: float) -> float:
    return float(np.exp(-np.logaddexp(0, -x)))
