"""New tokens' attention over a static cache: rope, the cache's new entries, and softmax over the row's own length.

Each row of a batch has its own length, read from the device, so one captured graph serves every length. A row's keys
are divided among programs (Flash-Decoding; Dao and others 2023); the one that ends last joins the parts with
their softmax maxima and sums. Nothing beyond a row's length is read, so old or undefined entries cannot leak. A row may
have several new tokens (positions), as when drafts are checked: they share the pass over its keys, as the queries that
share a key head do, and each sees those before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hayless.kernels.linear import Norm, overlapping

_MIN_DOT = 16
_BLOCK = 64
_JOINED = 4096
"""Elements of parts that are joined in one load."""
_LINE_BYTES: tl.constexpr = tl.constexpr(128)


class Scratch:
    """Buffers of the parts: reused by every layer and step. `splits` programs share a row's head.

    `heads` are queries of a row: the heads of each of its positions.
    """

    def __init__(self, rows: int, heads: int, kv_heads: int, head_dim: int, splits: int, device: torch.device) -> None:
        self.splits = splits
        self.parts = torch.empty(rows, heads, splits, head_dim, dtype=torch.float32, device=device)
        self.maxima = torch.empty(rows, heads, splits, dtype=torch.float32, device=device)
        self.sums = torch.empty_like(self.maxima)
        self.done = torch.zeros(rows, kv_heads, dtype=torch.int32, device=device)


def splits_for(rows: int, kv_heads: int, capacity: int, processors: int) -> int:
    """Programs a head so that about two run on every processor, or one block of keys in each; a power of 2 to 32."""
    wanted = max(1, min(2 * processors // (rows * kv_heads), capacity // _BLOCK))
    return min(32, 1 << (wanted.bit_length() - 1))


@triton.jit
def _prefetch(pointers):
    """Bring the cache lines at `pointers` into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _norm(low, high, gain_ptr, h, eps, HALF: tl.constexpr):
    """RMSNorm of the rows that `low` and `high` are the halves of."""
    inverse = 1.0 / tl.sqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)
    low *= inverse[:, None] * tl.load(gain_ptr + h, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
    high *= inverse[:, None] * tl.load(gain_ptr + HALF + h, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
    return low, high


@triton.jit
def _turn(low, high, cos_ptr, sin_ptr, at, h, mask, HALF: tl.constexpr):
    """Rotary positions `at` of the rows that `low` and `high` are the halves of."""
    cos = tl.load(cos_ptr + at[:, None] * HALF + h[None, :], mask=mask, other=0.0)
    sin = tl.load(sin_ptr + at[:, None] * HALF + h[None, :], mask=mask, other=0.0)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _fold(top, total, result, a_low, a_high, k_low, k_high, v, seen, scale):
    """Take a block of keys and values into running softmaxes: their maxima, sums and weighted values."""
    scores = tl.dot(a_low, tl.trans(k_low), input_precision="ieee")
    scores += tl.dot(a_high, tl.trans(k_high), input_precision="ieee")
    scores = tl.where(seen, scores * scale, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp(top - new_top)
    p = tl.exp(scores - new_top[:, None])
    total = total * shrink + tl.sum(p, 1)
    result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return new_top, total, result


@triton.jit(do_not_specialize=["offset"])
def _attention(
    q_ptr,
    k_ptr,
    v_ptr,
    q_stride,
    k_stride,
    v_stride,
    q_gain_ptr,
    k_gain_ptr,
    cos_ptr,
    sin_ptr,
    lengths_ptr,
    k_cache_ptr,
    v_cache_ptr,
    parts_ptr,
    maxima_ptr,
    sums_ptr,
    done_ptr,
    out_ptr,
    capacity,
    offset,
    scale,
    eps,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    POSITIONS: tl.constexpr,
    POSITIONS_PADDED: tl.constexpr,
    QUERIES_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    JOINED: tl.constexpr,
    QK_NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    HALF: tl.constexpr = DIM // 2
    QUERIES: tl.constexpr = GROUP * POSITIONS
    # A query is a head of the group at a position; a position is a new token.
    i = tl.arange(0, QUERIES_PADDED)
    position, g = i // GROUP, i % GROUP
    p = tl.arange(0, POSITIONS_PADDED)
    h = tl.arange(0, HALF_PADDED)
    d = tl.arange(0, DIM_PADDED)
    length = tl.maximum(tl.load(lengths_ptr + row) + offset, 0)
    base = (row * KV_HEADS + head).to(tl.int64) * capacity * DIM
    share = tl.cdiv(length, SPLITS)
    start = split * share
    end = tl.minimum(start + share, length)
    if OVERLAP:
        gdc_launch_dependents()
        # Lengths and older entries of the cache are not from the kernel before: the first block is fetched meanwhile.
        if start < end:
            ahead = base + tl.minimum(start + tl.arange(0, BLOCK), end - 1).to(tl.int64) * DIM
            for piece in tl.static_range(0, DIM, _LINE_BYTES * 8 // k_cache_ptr.dtype.element_ty.primitive_bitwidth):
                _prefetch(k_cache_ptr + ahead + piece)
                _prefetch(v_cache_ptr + ahead + piece)
        gdc_wait()

    q_at = q_ptr + (row * POSITIONS + position)[:, None] * q_stride + (head * GROUP + g)[:, None] * DIM + h[None, :]
    q_mask = (i < QUERIES)[:, None] & (h < HALF)[None, :]
    q_low = tl.load(q_at, mask=q_mask, other=0.0).to(tl.float32)
    q_high = tl.load(q_at + HALF, mask=q_mask, other=0.0).to(tl.float32)
    if QK_NORM:
        q_low, q_high = _norm(q_low, q_high, q_gain_ptr, h, eps, HALF)
    # The new keys and values are used by the last split only, but loaded here, while the queries are.
    new_at = (row * POSITIONS + p)[:, None]
    new_mask = (p < POSITIONS)[:, None] & (h < HALF)[None, :]
    k_new_at = k_ptr + new_at * k_stride + head * DIM + h[None, :]
    k_new_low = tl.load(k_new_at, mask=new_mask, other=0.0).to(tl.float32)
    k_new_high = tl.load(k_new_at + HALF, mask=new_mask, other=0.0).to(tl.float32)
    dtype = k_cache_ptr.dtype.element_ty
    v_new_mask = (p < POSITIONS)[:, None] & (d < DIM)[None, :]
    v_new = tl.load(v_ptr + new_at * v_stride + head * DIM + d[None, :], mask=v_new_mask, other=0.0).to(dtype)
    a_low, a_high = _turn(q_low, q_high, cos_ptr, sin_ptr, length + position, h, q_mask, HALF)
    a_low, a_high = a_low.to(dtype), a_high.to(dtype)

    top = tl.full((QUERIES_PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES_PADDED,), tl.float32)
    result = tl.zeros((QUERIES_PADDED, DIM_PADDED), tl.float32)
    for first in range(start, end, BLOCK):
        t = first + tl.arange(0, BLOCK)
        live = t < end
        k_at = k_cache_ptr + base + t[:, None] * DIM + h[None, :]
        k_mask = live[:, None] & (h < HALF)[None, :]
        k_low = tl.load(k_at, mask=k_mask, other=0.0)
        k_high = tl.load(k_at + HALF, mask=k_mask, other=0.0)
        v_mask = live[:, None] & (d < DIM)[None, :]
        v = tl.load(v_cache_ptr + base + t[:, None] * DIM + d[None, :], mask=v_mask, other=0.0)
        top, total, result = _fold(top, total, result, a_low, a_high, k_low, k_high, v, live[None, :], scale)

    if split == SPLITS - 1:
        # The new tokens: their keys and values go into the cache, and are attended from here.
        if QK_NORM:
            k_new_low, k_new_high = _norm(k_new_low, k_new_high, k_gain_ptr, h, eps, HALF)
        new_low, new_high = _turn(k_new_low, k_new_high, cos_ptr, sin_ptr, length + p, h, new_mask, HALF)
        new_low, new_high = new_low.to(dtype), new_high.to(dtype)
        at = base + (length + p)[:, None].to(tl.int64) * DIM
        tl.store(k_cache_ptr + at + h[None, :], new_low, mask=new_mask)
        tl.store(k_cache_ptr + at + HALF + h[None, :], new_high, mask=new_mask)
        tl.store(v_cache_ptr + at + d[None, :], v_new, mask=v_new_mask)
        seen = (p[None, :] <= position[:, None]) & (p < POSITIONS)[None, :]
        top, total, result = _fold(top, total, result, a_low, a_high, new_low, new_high, v_new, seen, scale)

    if SPLITS > 1:
        part = ((row * KV_HEADS + head) * QUERIES + i) * SPLITS + split
        out_mask = (i < QUERIES)[:, None] & (d < DIM)[None, :]
        tl.store(parts_ptr + part[:, None].to(tl.int64) * DIM + d[None, :], result, mask=out_mask)
        tl.store(maxima_ptr + part, top, mask=i < QUERIES)
        tl.store(sums_ptr + part, total, mask=i < QUERIES)
        tl.debug_barrier()
        before = tl.atomic_add(done_ptr + row * KV_HEADS + head, 1, sem="acq_rel")
        if before == SPLITS - 1:
            tl.debug_barrier()
            s = tl.arange(0, SPLITS)
            # All parts of some queries in one load: a loop over parts would wait for each.
            for joined in tl.static_range(0, QUERIES, JOINED):
                j = joined + tl.arange(0, JOINED)
                there = (j < QUERIES)[:, None]
                every = ((row * KV_HEADS + head) * QUERIES + j)[:, None] * SPLITS + s[None, :]
                tops = tl.load(maxima_ptr + every, mask=there, other=0.0, cache_modifier=".cg")
                sums = tl.load(sums_ptr + every, mask=there, other=1.0, cache_modifier=".cg")
                pieces = tl.load(
                    parts_ptr + every[:, :, None].to(tl.int64) * DIM + d[None, None, :],
                    mask=there[:, :, None] & (d < DIM)[None, None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                weights = tl.exp(tops - tl.max(tops, 1)[:, None])
                y = tl.sum(weights[:, :, None] * pieces, 1) / tl.sum(weights * sums, 1)[:, None]
                at = ((row * POSITIONS + j // GROUP) * KV_HEADS + head) * GROUP + j % GROUP
                joined_mask = there & (d < DIM)[None, :]
                tl.store(out_ptr + at[:, None] * DIM + d[None, :], y.to(out_ptr.dtype.element_ty), mask=joined_mask)
            tl.store(done_ptr + row * KV_HEADS + head, 0)
    else:
        y = (result / total[:, None]).to(out_ptr.dtype.element_ty)
        at = ((row * POSITIONS + position) * KV_HEADS + head) * GROUP + g
        tl.store(out_ptr + at[:, None] * DIM + d[None, :], y, mask=(i < QUERIES)[:, None] & (d < DIM)[None, :])


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    scratch: Scratch,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    scale: float | None = None,
    overlap: bool = False,
    offset: int = 0,
) -> Tensor:
    """Attention of the new tokens of each row; writes their keys and values behind `lengths` in the cache, and `out`.

    q (rows·positions, heads·dim), k and v (rows·positions, kv_heads·dim) before rope, may be strided; cos, sin (places,
    dim/2) float32; lengths (rows,) int32, with `offset` added (but at least 0) the tokens already in the cache; caches
    (rows, kv_heads, capacity, dim), contiguous; out (rows·positions, heads·dim), contiguous. q_norm and k_norm are
    RMSNorms over a head, before rope (Qwen3).
    """
    rows, kv_heads, capacity, dim = k_cache.shape
    group = q.shape[1] // (kv_heads * dim)
    positions = q.shape[0] // rows
    queries = triton.next_power_of_2(group * positions)
    dim_padded = max(_MIN_DOT, triton.next_power_of_2(dim))
    _attention[(rows, kv_heads, scratch.splits)](
        q,
        k,
        v,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        q_norm.gain if q_norm else q,
        k_norm.gain if k_norm else k,
        cos,
        sin,
        lengths,
        k_cache,
        v_cache,
        scratch.parts,
        scratch.maxima,
        scratch.sums,
        scratch.done,
        out,
        capacity,
        offset,
        dim**-0.5 if scale is None else scale,
        q_norm.eps if q_norm else 0.0,
        KV_HEADS=kv_heads,
        GROUP=group,
        POSITIONS=positions,
        POSITIONS_PADDED=max(_MIN_DOT, triton.next_power_of_2(positions)),
        QUERIES_PADDED=max(_MIN_DOT, queries),
        DIM=dim,
        HALF_PADDED=max(_MIN_DOT, triton.next_power_of_2(dim // 2)),
        DIM_PADDED=dim_padded,
        BLOCK=_BLOCK,
        SPLITS=scratch.splits,
        JOINED=max(1, min(queries, _JOINED // (scratch.splits * dim_padded))),
        QK_NORM=q_norm is not None,
        OVERLAP=overlap,
        num_warps=4,
        num_stages=3,
        **overlapping(overlap),
    )
    return out


def decode_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    scale: float | None = None,
) -> Tensor:
    """The same in plain PyTorch, token by token."""
    rows, kv_heads, _, dim = k_cache.shape
    positions = q.shape[0] // rows
    scale = dim**-0.5 if scale is None else scale
    results = []
    for token in range(rows * positions):
        row, n = token // positions, int(lengths[token // positions]) + token % positions
        new_k = _turned(q_or_k=k[token].view(kv_heads, dim), norm=k_norm, cos=cos[n], sin=sin[n])
        new_q = _turned(q_or_k=q[token].view(-1, dim), norm=q_norm, cos=cos[n], sin=sin[n]).to(k_cache.dtype).float()
        k_cache[row, :, n] = new_k.to(k_cache.dtype)
        v_cache[row, :, n] = v[token].view(kv_heads, dim).to(v_cache.dtype)
        keys, values = k_cache[row, :, : n + 1].float(), v_cache[row, :, : n + 1].float()
        grouped = new_q.view(kv_heads, -1, dim)
        probs = (grouped @ keys.transpose(1, 2) * scale).softmax(-1)
        results.append((probs @ values).reshape(-1))
    return torch.stack(results).to(q.dtype)


def _turned(q_or_k: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor) -> Tensor:
    x = q_or_k.float()
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.gain.float()
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
