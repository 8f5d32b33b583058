"""Cross-entropy of each target under the model: `lm` and `sft`, which differ in what the data room made a target.

Shapes: b rows, s positions, v entries of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.method import MethodConfig
from hayless.data.batches import IGNORED, Batch
from hayless.data.corpus import Kind
from hayless.train.forward import model_inputs, upcast
from hayless.train.slots import Loss


class LanguageModelling:
    """−log p(target | tokens before it in its document), summed over targets."""

    unit = "token"
    kind: Kind = "lm"

    def __init__(self, config: MethodConfig) -> None:
        """No option of `lm` or `sft` changes the loss."""

    def units(self, batch: Batch) -> int:
        """Positions that have a target."""
        return batch.trained_tokens

    def loss(self, model: PreTrainedModel, batch: Batch) -> Loss:
        """The summed cross-entropy, in nats; computed in float32 at least."""
        logits_bsv = model(**model_inputs(model, batch)).logits
        return Loss(_cross_entropy(logits_bsv, batch.targets))


class Finetuning(LanguageModelling):
    """The same over the answers' tokens, with the share of them that the model would have chosen."""

    kind: Kind = "sft"

    def loss(self, model: PreTrainedModel, batch: Batch) -> Loss:
        """The summed cross-entropy, in nats, and `token_accuracy`."""
        logits_bsv = model(**model_inputs(model, batch)).logits
        with torch.no_grad():
            right = ((logits_bsv.argmax(-1) == batch.targets) & (batch.targets != IGNORED)).sum()
        return Loss(_cross_entropy(logits_bsv, batch.targets), {"token_accuracy": right})


def _cross_entropy(logits_bsv: Tensor, targets_bs: Tensor) -> Tensor:
    flat = upcast(logits_bsv).flatten(0, 1)
    return F.cross_entropy(flat, targets_bs.flatten(), ignore_index=IGNORED, reduction="sum")
