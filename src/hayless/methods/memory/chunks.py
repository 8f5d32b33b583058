"""The loss of a language model a chunk of tokens at a time.

A head that is a plain linear layer goes through `hayless.kernels.linear_loss`, which computes each product once. One
that does more (an adapter beside it, packed weights, rows of new tokens) is called as it is for each chunk, and once
more in the backward pass. Shapes: b rows, s positions, n = b · s tokens, c of a chunk, h width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.data.batches import Batch
from hayless.kernels.linear_loss import cross_entropy_reference, linear_cross_entropy
from hayless.methods.memory.chunked_loss import ChunkedLossConfig
from hayless.train.forward import model_inputs
from hayless.train.token_loss import TokenLoss, computed_by


class ChunkedLoss:
    """Fills the memory slot."""

    @staticmethod
    def install(model: PreTrainedModel, config: ChunkedLossConfig) -> AbstractContextManager[None]:
        """Compute the model's loss by chunks, in evaluation too, with the head as it is now.

        NotSupported for a model that predicts no tokens.
        """
        head = model.get_output_embeddings()
        if head is None:
            raise NotSupported(
                f"{type(model).__name__} predicts no tokens: it has no logits that chunked_loss could do without.",
                hint="Take chunked_loss out of memory.",
            )
        plain = _plain(head)
        softcap = getattr(model.config, "final_logit_softcapping", None)

        def compute(model: PreTrainedModel, batch: Batch, count_right: bool) -> TokenLoss:
            hidden_nh = model.base_model(**model_inputs(model, batch)).last_hidden_state.flatten(0, 1)
            targets_n = batch.targets.flatten()
            if plain:
                return TokenLoss(
                    *linear_cross_entropy(
                        hidden_nh, head.weight, targets_n, bias_v=head.bias, softcap=softcap, chunk=config.tokens
                    )
                )
            return _called(head, hidden_nh, targets_n, softcap, config.tokens)

        return computed_by(model, compute)


def _plain(head: Any) -> bool:
    """Whether a head is its weight and its bias, and nothing else when it is called."""
    changed = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return type(head) is nn.Linear and not changed


def _called(head: nn.Module, hidden_nh: Tensor, targets_n: Tensor, softcap: float | None, chunk: int) -> TokenLoss:
    """The loss of whatever `head` computes; logits are kept for no chunk, and computed again for their gradients."""

    def of_chunk(hidden_ch: Tensor, targets_c: Tensor) -> tuple[Tensor, Tensor]:
        losses_c, right_c = cross_entropy_reference(head(hidden_ch), targets_c, softcap=softcap, gradient=False)
        return losses_c.sum(), right_c.sum()

    chunks = zip(hidden_nh.split(chunk), targets_n.split(chunk), strict=True)
    if torch.is_grad_enabled():
        found = [checkpoint(of_chunk, *each, use_reentrant=False) for each in chunks]
    else:
        found = [of_chunk(*each) for each in chunks]
    totals, rights = zip(*found, strict=True)
    return TokenLoss(torch.stack(totals).sum(), torch.stack(rights).sum())
