"""Prompt tuning as the paper writes it (Lester et al. 2021, arXiv:2104.08691, section 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def logits(model: Callable[[Tensor], Tensor], prompt: Tensor, embedded: Tensor) -> Tensor:
    """The model on [P; X]: prompt (n, e), embedded text (b, s, e) → logits (b, s, v) of the text's positions."""
    both = torch.cat([prompt.expand(len(embedded), -1, -1), embedded], dim=1)
    return model(both)[:, len(prompt) :]
