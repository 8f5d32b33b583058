"""Activation checkpointing with torch.utils.checkpoint, on whole blocks.

Gradients keep their bits: the second forward pass runs under the random state and autocast of the first. What is dear
to compute can be kept by PyTorch's own policies (`create_selective_checkpoint_contexts`), operation by operation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from hayless.core.tape import Kept
from hayless.kernels import fp8_training
from hayless.methods.memory.checkpointing import CheckpointingConfig
from hayless.train.blocks import Forward, blocks, mark_recomputed, wrapped

_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)
"""What fused attention comes to, by device, dtype and kind of mask."""
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::_grouped_mm", "aten::_scaled_mm", fp8_training.PRODUCT)
"""What a product with a weight comes to. (Scores that are written down are `bmm`: too large to keep.)"""


class Checkpointing:
    """Fills the memory slot."""

    @staticmethod
    def install(model: PreTrainedModel, config: CheckpointingConfig) -> AbstractContextManager[None]:
        """Checkpoint every n-th block, or the first of those, while it trains; in evaluation they run as they are."""
        return wrapped(blocks(model)[:: config.every][: config.blocks], partial(_recomputed, keeping(config.keep)))


def keeping(keep: Kept) -> dict[str, Any]:
    """What tells `torch.utils.checkpoint` to keep the results of these operations; nothing where it keeps none."""
    names = {"nothing": (), "attention": _ATTENTION, "products": (*_ATTENTION, *_PRODUCTS)}[keep]
    # An operation that this version of PyTorch does not have is not met.
    found = [torch._C._dispatch_has_kernel(name) and _operation(name) for name in names]
    kept = [operation for operation in found if operation]
    return {"context_fn": partial(create_selective_checkpoint_contexts, kept)} if kept else {}


def _operation(name: str) -> Any:
    namespace, _, operation = name.partition("::")
    return getattr(getattr(torch.ops, namespace), operation).default


def _recomputed(policy: dict[str, Any], block: nn.Module, forward: Forward) -> Forward:
    def run(*inputs: Any, **options: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False, **policy, **options)
        return forward(*inputs, **options)

    return mark_recomputed(run)
