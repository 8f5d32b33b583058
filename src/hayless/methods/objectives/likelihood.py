"""Cross-entropy of each target under the model: `lm` and `sft`, which differ in what the data room made a target."""

from __future__ import annotations

from transformers import PreTrainedModel

from hayless.core.method import MethodConfig
from hayless.data.batches import Batch
from hayless.data.corpus import Kind
from hayless.train.slots import Loss
from hayless.train.token_loss import token_loss


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
        return Loss(token_loss(model, batch).total)


class Finetuning(LanguageModelling):
    """The same over the answers' tokens, with the share of them that the model would have chosen."""

    kind: Kind = "sft"

    def loss(self, model: PreTrainedModel, batch: Batch) -> Loss:
        """The summed cross-entropy, in nats, and `token_accuracy`."""
        found = token_loss(model, batch, count_right=True)
        assert found.right is not None, "it was asked for"
        return Loss(found.total, {"token_accuracy": found.right})
