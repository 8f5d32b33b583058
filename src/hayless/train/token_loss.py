"""The cross-entropy of every target, and who computes it: the objectives over tokens ask here.

The model gives logits and PyTorch their loss, unless a memory method is in force that never has all logits at once.
Shapes: b rows, s positions, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.data.batches import IGNORED, Batch
from hayless.train.forward import model_inputs, upcast


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The cross-entropy of a batch's targets, summed, in nats and in float32 at least; and how many targets are the
    likeliest token (the first of equals), where that was asked for."""

    total: Tensor
    right: Tensor | None


Compute = Callable[[PreTrainedModel, Batch, bool], TokenLoss]
"""From a model, a batch on its device, and whether right tokens are counted."""

_COMPUTED_BY: WeakKeyDictionary[PreTrainedModel, Compute] = WeakKeyDictionary()


def token_loss(model: PreTrainedModel, batch: Batch, *, count_right: bool = False) -> TokenLoss:
    """The loss of `batch`, which lies on the model's device, as it is computed for `model` now."""
    return _COMPUTED_BY.get(model, from_logits)(model, batch, count_right)


def from_logits(model: PreTrainedModel, batch: Batch, count_right: bool) -> TokenLoss:
    """The same from the logits of all positions together."""
    logits_bsv, targets_bs = model(**model_inputs(model, batch)).logits, batch.targets
    right = None
    if count_right:
        right = ((logits_bsv.detach().argmax(-1) == targets_bs) & (targets_bs != IGNORED)).sum()
    return TokenLoss(cross_entropy(logits_bsv, targets_bs), right)


def cross_entropy(logits_bsv: Tensor, targets_bs: Tensor) -> Tensor:
    """PyTorch's, summed over targets, in float32 at least."""
    flat = upcast(logits_bsv).flatten(0, 1)
    return F.cross_entropy(flat, targets_bs.flatten(), ignore_index=IGNORED, reduction="sum")


@contextmanager
def computed_by(model: PreTrainedModel, compute: Compute) -> Iterator[None]:
    """Let `compute` give the loss of `model`, while the context is open. Contexts nest."""
    before = _COMPUTED_BY.get(model)
    _COMPUTED_BY[model] = compute
    try:
        yield
    finally:
        del _COMPUTED_BY[model]
        if before is not None:
            _COMPUTED_BY[model] = before
