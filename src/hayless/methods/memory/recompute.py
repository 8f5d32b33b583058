"""Activation checkpointing with torch.utils.checkpoint, on whole blocks.

Gradients keep their bits: the second forward pass runs under the random state and autocast of the first.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hayless.methods.memory.checkpointing import CheckpointingConfig
from hayless.train.blocks import Forward, blocks, wrapped


class Checkpointing:
    """Fills the memory slot."""

    @staticmethod
    def install(model: PreTrainedModel, config: CheckpointingConfig) -> AbstractContextManager[None]:
        """Checkpoint every n-th block, or the first of those, while it trains; in evaluation they run as they are."""
        return wrapped(blocks(model)[:: config.every][: config.blocks], _recomputed)


def _recomputed(block: nn.Module, forward: Forward) -> Forward:
    def run(*inputs: Any, **options: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False, **options)
        return forward(*inputs, **options)

    return run
