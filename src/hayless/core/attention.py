"""Which attention keeps packed documents apart while a model trains: the rule of predictions and of runs. No torch.

`eager` writes all scores down and `sdpa` calls PyTorch's fused attention, both under an explicit mask of positions ×
positions. `varlen` has no mask: it knows where documents begin, and each attends within itself. On CUDA that is
FlashAttention-2 (Dao, 2023, arXiv:2307.08691) over cumulative lengths, elsewhere one document after another.
"""

from __future__ import annotations

from typing import Literal

from hayless.core.dims import ModelDims
from hayless.core.dtypes import item_bytes
from hayless.core.errors import NotSupported, RequestError

Attention = Literal["sdpa", "eager", "varlen"]
AttentionChoice = Literal["auto", "sdpa", "eager", "varlen"]

_ENCODERS = ("bert", "t5")
_CAPPED = ("gemma2",)
"""Models that cap their scores before the softmax, which only eager attention does."""
_WIDEST_HEAD = 256


_OLDEST = 8
"""Ampere's compute capability."""


def attention_for(
    wanted: AttentionChoice,
    dims: ModelDims,
    *,
    arithmetic: str,
    device: str,
    packed: bool,
    capability: int | None = None,
) -> tuple[Attention, str]:
    """The attention that a run trains with, and in words why `auto` came to it.

    `arithmetic` is the dtype of queries and keys, `device` the kind of device (cuda, cpu), `capability` a known GPU's
    compute capability, its major number. `auto` takes varlen where rows are `packed`, there is CUDA and the kernel
    serves the model; else sdpa, or eager where a model allows no other.
    NotSupported and RequestError where what is wanted cannot be had.
    """
    capped = dims.model_type in _CAPPED
    reason = varlen_refusal(dims, arithmetic, device, capability)
    if wanted == "auto":
        if capped:
            return "eager", f"{dims.model_type} caps its scores"
        if not packed:
            return "sdpa", "a row is one text"
        if device == "cuda" and not reason:
            return "varlen", "rows are packed"
        return "sdpa", reason or f"varlen on {device} is a loop over documents"
    if wanted == "varlen" and reason:
        kind = NotSupported if dims.family in _ENCODERS or capped else RequestError
        raise kind(f"attention = 'varlen' is not possible: {reason}.", hint="Take attention: auto, or sdpa.")
    if wanted == "sdpa" and capped:
        raise NotSupported(
            f"attention = 'sdpa' is not possible: {dims.model_type} caps its scores.", hint="Take attention: auto."
        )
    return wanted, "as asked for"


def varlen_refusal(dims: ModelDims, arithmetic: str, device: str, capability: int | None = None) -> str:
    """Why varlen attention cannot serve a model; empty where it can."""
    if dims.family in _ENCODERS:
        return f"{dims.model_type} is no decoder, its positions see those after them"
    if dims.model_type in _CAPPED:
        return f"{dims.model_type} caps its scores, which no fused kernel does"
    if device != "cuda":
        return ""
    if capability is not None and capability < _OLDEST:
        return f"the kernel is for GPUs of compute capability {_OLDEST} and above, this one has {capability}"
    if item_bytes(arithmetic) != 2:
        return f"the kernel computes in 16 bits, not in {arithmetic}"
    if dims.attention_dropout:
        return f"the kernel has no dropout of attention, the model has {dims.attention_dropout:g}"
    if dims.head_dim % 8 or dims.head_dim > _WIDEST_HEAD:
        return f"the kernel takes heads of up to {_WIDEST_HEAD} in multiples of 8, not of {dims.head_dim}"
    return ""
