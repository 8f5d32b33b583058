"""Causal attention of documents that lie one after another, each within itself, by cumulative lengths and no mask.

PyTorch's own kernel (`torch.nn.attention.varlen`) is FlashAttention-2 (Dao, 2023, arXiv:2307.08691): CUDA, 16 bits, no
dropout. Shapes: t positions of all documents together, h heads, d a head's width; document i holds the positions
`cumulative[i]` to `cumulative[i + 1]` − 1.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

# PyTorch 2.11 serves grouped queries unasked; later versions want to be told.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def varlen_attention(
    q_thd: Tensor,
    k_thd: Tensor,
    v_thd: Tensor,
    cumulative: Tensor,
    longest: int,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention (t, h, d) by PyTorch's kernel, in autocast's dtype where that is on.

    Queries of several heads may share the keys and values of one. `cumulative` (documents + 1,) int32 covers all
    positions: none outside is written. `longest` is the longest document. `window` is how many positions, itself
    included, one sees at most.
    """
    if torch.is_autocast_enabled(q_thd.device.type):
        dtype = torch.get_autocast_dtype(q_thd.device.type)
        q_thd, k_thd, v_thd = q_thd.to(dtype), k_thd.to(dtype), v_thd.to(dtype)
    sees = (-1 if window is None else window - 1, 0)
    out = varlen_attn(
        q_thd, k_thd, v_thd, cumulative, cumulative, longest, longest, scale=scale, window_size=sees, **_GROUPED
    )
    assert isinstance(out, Tensor), "it is a pair only where log-sums of exponentials are asked for"
    return out


def varlen_attention_reference(
    q_thd: Tensor,
    k_thd: Tensor,
    v_thd: Tensor,
    cumulative: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same in plain PyTorch, document by document, in any dtype and with dropout of the weights."""
    lengths = cumulative.diff().tolist()
    documents = zip(q_thd.split(lengths), k_thd.split(lengths), v_thd.split(lengths), strict=True)
    return torch.cat([_document(q, k, v, scale, window, dropout) for q, k, v in documents])


def _document(
    q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, scale: float | None, window: int | None, dropout: float
) -> Tensor:
    length = q_thd.shape[0]
    mask = None
    if window is not None and window < length:
        mask = torch.ones(length, length, dtype=torch.bool, device=q_thd.device).tril().triu(1 - window)
    q_hnd, k_hnd, v_hnd = (tensor.transpose(0, 1) for tensor in (q_thd, k_thd, v_thd))
    out = F.scaled_dot_product_attention(
        q_hnd[None],
        k_hnd[None],
        v_hnd[None],
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q_thd.shape[1] != k_thd.shape[1],
    )
    return out[0].transpose(0, 1)
