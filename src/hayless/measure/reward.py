"""Scores of a reward model, and how often it ranks a pair of answers as people did.

Shapes: b rows (2i chosen, 2i + 1 rejected), s positions, h width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.data.batches import Batch
from hayless.decode.engine import evaluating
from hayless.measure.interval import Interval
from hayless.measure.quality import pairwise_accuracy


def reward_accuracy(model: PreTrainedModel, batches: Iterable[Batch]) -> Interval:
    """Pairwise accuracy over batches of preferences, one answer a row; ties count one half.

    NotSupported for a model without a score head; RequestError where there are no pairs; WorkError for scores that are
    not finite.
    """
    chosen: list[float] = []
    rejected: list[float] = []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            found = scores(model, batch.to(model.device)).tolist()
            chosen += found[0::2]
            rejected += found[1::2]
    return pairwise_accuracy(chosen, rejected)


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
