"""Attention functions under transformers' own switch: registered by name, in force for one model and a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

VARLEN = "hayless_varlen"
"""The name that attention by cumulative lengths has in transformers."""
WITH_VIRTUAL = "hayless_virtual"
"""The name of attention to virtual tokens before the text."""

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
"""`f(module, q, k, v, mask, scaling=…, dropout=…, **what the model was called with)` → ((b, s, h, d), weights or None).

q is (b, h, s, d); k and v have their own number of heads.
"""


@contextmanager
def attending(model: PreTrainedModel, name: str, function: AttentionFunction | None = None) -> Iterator[None]:
    """Let `model` attend by `name`, while the context is open: one of transformers' own, or `function`.

    `function` gets the masks that `sdpa` would get: without a mask function of its own it would get none, and padding
    would leak in silence. The choice is not written into the model's files.
    """
    before: Any = model.config._attn_implementation
    attend_by(model, name, function)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend_by(model: PreTrainedModel, name: str, function: AttentionFunction | None = None) -> None:
    """The same for as long as nobody sets another."""
    if function is not None:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
