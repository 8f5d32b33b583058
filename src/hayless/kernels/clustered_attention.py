"""Attention of one new token a row, in CUDA C++ (clustered_attention.cu): `decode_attention` of what is soon read.

Triton's kernel joins what its programs have found through memory, by a counter: three waits that blocks of a cluster do
without. It begins with the cache before the queries are there.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from hayless.kernels.compiled import Argument, compiled, is_recent, launch, why_not
from hayless.kernels.linear import Norm

_SOURCES = (Path(__file__).with_name("clustered_attention.cu"),)
_WARPS, _MOST_SPLITS, _QUERIES = 4, 8, 8
_LITTLE, _ALONE = 2048, 2
"""Tokens, and queries of a key head, that blocks have done with soon, though they do not fill the processors."""
_KEYS = 64
"""Of a block at least, where several share a row's key head."""


def unsupported(q: Tensor, k_cache: Tensor, processors: int) -> str:
    """Why the kernel cannot or should not attend queries (rows, heads·dim) to a cache (rows, kv_heads, capacity, dim),
    in words; empty where it can, and its blocks fill the processors or have little to read."""
    rows, kv_heads, capacity, dim = k_cache.shape
    if torch.version.cuda is None or not is_recent(q):
        return "it needs an NVIDIA GPU of compute capability 9.0 or newer"
    if q.dtype not in (torch.float16, torch.bfloat16) or k_cache.dtype is not q.dtype:
        return f"it reads fp16 and bf16, not {q.dtype} and {k_cache.dtype}"
    if q.shape[0] != rows:
        return "it takes one new token of each row"
    queries = q.shape[1] // (kv_heads * dim)
    if dim not in (64, 128, 256) or queries > _QUERIES:
        return f"it has no heads of {dim} channels, {queries} of which share a key head"
    blocks = rows * kv_heads * splits_for(rows, kv_heads, capacity, processors)
    if blocks < processors and (capacity > _LITTLE or queries > _ALONE):
        return f"{rows} × {kv_heads} key heads of {capacity} tokens are for more blocks than a cluster has"
    return why_not(q.device.index)


def splits_for(rows: int, kv_heads: int, capacity: int, processors: int) -> int:
    """Blocks that share a row's key head: as fill the processors twice, if each has enough keys."""
    wanted = min(_MOST_SPLITS, 2 * processors // (rows * kv_heads), capacity // _KEYS)
    return 1 << (max(1, wanted).bit_length() - 1)


def clustered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    *,
    splits: int,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    scale: float | None = None,
    overlap: bool = False,
    offset: int = 0,
) -> None:
    """`decode_attention` by blocks of clusters, `splits` of them for a row's key head."""
    rows, kv_heads, capacity, dim = k_cache.shape
    queries = q.shape[1] // (kv_heads * dim)
    defined = {
        "BITS": 16,
        "BF16": int(q.dtype is torch.bfloat16),
        "DIM": dim,
        "QUERIES": queries,
        "WARPS": _WARPS,
        "SPLITS": splits,
        "CLUSTER": int(splits > 1),
        "NORM": int(q_norm is not None),
        "OVERLAP": int(overlap),
    }
    kernel = compiled(_SOURCES, "clustered_attention", defined, q.device.index)
    gains = [q if norm is None else norm.gain for norm in (q_norm, k_norm)]
    args: list[Argument] = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (q, k, v)]
    args += [ctypes.c_int(tensor.stride(0)) for tensor in (q, k, v)]
    args += [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*gains, cos, sin, lengths, k_cache, v_cache, out)]
    args += [ctypes.c_int(capacity), ctypes.c_int(offset)]
    args += [ctypes.c_float(dim**-0.5 if scale is None else scale), ctypes.c_float(q_norm.eps if q_norm else 0.0)]
    shared = 4 * splits * _WARPS * -(-queries // splits) * (dim + 2)
    launch(kernel, (splits, kv_heads, rows), (32 * _WARPS, 1, 1), args, shared, overlap=overlap)
