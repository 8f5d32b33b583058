"""Fused q, k, v projections taken apart and put together again.

GPT-2 lays all of q before all of k before all of v; GPT-NeoX lays q, k, v of the first head, then of the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported, bad_value


def split_qkv(dims: ModelDims, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (hidden, …), heads in order, of a fused weight (3·hidden, in) or bias (3·hidden).

    NotSupported for a family whose projections are not fused; RequestError for a tensor of another height.
    """
    order = _order(dims)
    if fused.ndim < 1 or fused.shape[0] != 3 * dims.q_width:
        raise bad_value("fused", tuple(fused.shape), allowed=f"a tensor of {3 * dims.q_width} rows (q, k and v)")
    q, k, v = fused[order.to(fused.device)].split(dims.q_width)
    return q, k, v


def join_qkv(dims: ModelDims, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The fused tensor of q, k and v: undoes `split_qkv`."""
    order = _order(dims)
    joined = torch.cat([q, k, v])
    if joined.shape[0] != 3 * dims.q_width:
        raise bad_value("q, k, v", tuple(joined.shape), allowed=f"{3 * dims.q_width} rows in all")
    fused = torch.empty_like(joined)
    fused[order.to(joined.device)] = joined
    return fused


def _order(dims: ModelDims) -> Tensor:
    """Row numbers in the fused tensor of q's rows, then k's, then v's."""
    rows = torch.arange(3 * dims.q_width)
    if dims.family == "gpt2":
        return rows
    if dims.family == "gpt_neox":
        return rows.view(dims.num_heads, 3, dims.head_dim).transpose(0, 1).reshape(-1)
    raise NotSupported(f"Models of the {dims.family} family have q, k and v apart: there is nothing to split.")
