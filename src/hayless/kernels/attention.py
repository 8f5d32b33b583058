"""One token's attention over a static cache: rope, the cache's new entry, and softmax over the row's own length.

Each row of a batch has its own length, read from the device, so one captured graph serves every length. A row's keys
are divided among programs (Flash-Decoding; Dao and others 2023); the one that ends last joins the parts with
their softmax maxima and sums. Nothing beyond a row's length is read, so old or undefined entries cannot leak.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hayless.kernels.linear import Norm

_MIN_DOT = 16
_BLOCK = 64
_LINE_BYTES: tl.constexpr = tl.constexpr(128)


class Scratch:
    """Buffers of the parts: reused by every layer and step. `splits` programs share a row's head."""

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
    scale,
    eps,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    QK_NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    HALF: tl.constexpr = DIM // 2
    g = tl.arange(0, GROUP_PADDED)
    h = tl.arange(0, HALF_PADDED)
    d = tl.arange(0, DIM_PADDED)
    length = tl.load(lengths_ptr + row)
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

    q_at = q_ptr + row * q_stride + (head * GROUP + g)[:, None] * DIM + h[None, :]
    q_mask = (g < GROUP)[:, None] & (h < HALF)[None, :]
    q_low = tl.load(q_at, mask=q_mask, other=0.0).to(tl.float32)
    q_high = tl.load(q_at + HALF, mask=q_mask, other=0.0).to(tl.float32)
    if QK_NORM:
        inverse = 1.0 / tl.sqrt((tl.sum(q_low * q_low, 1) + tl.sum(q_high * q_high, 1)) / DIM + eps)
        q_low *= inverse[:, None] * tl.load(q_gain_ptr + h, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
        q_high *= inverse[:, None] * tl.load(q_gain_ptr + HALF + h, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
    cos = tl.load(cos_ptr + length * HALF + h, mask=h < HALF, other=0.0)
    sin = tl.load(sin_ptr + length * HALF + h, mask=h < HALF, other=0.0)
    dtype = k_cache_ptr.dtype.element_ty
    # The new token's key and value are used by the last split only, but loaded here, while the queries are.
    new_at = k_ptr + row * k_stride + head * DIM + h
    k_new_low = tl.load(new_at, mask=h < HALF, other=0.0).to(tl.float32)
    k_new_high = tl.load(new_at + HALF, mask=h < HALF, other=0.0).to(tl.float32)
    v_new = tl.load(v_ptr + row * v_stride + head * DIM + d, mask=d < DIM, other=0.0).to(dtype)
    a_low = (q_low * cos[None, :] - q_high * sin[None, :]).to(dtype)
    a_high = (q_high * cos[None, :] + q_low * sin[None, :]).to(dtype)

    top = tl.full((GROUP_PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    result = tl.zeros((GROUP_PADDED, DIM_PADDED), tl.float32)
    for first in range(start, end, BLOCK):
        t = first + tl.arange(0, BLOCK)
        live = t < end
        k_at = k_cache_ptr + base + t[:, None] * DIM + h[None, :]
        k_mask = live[:, None] & (h < HALF)[None, :]
        k_low = tl.load(k_at, mask=k_mask, other=0.0)
        k_high = tl.load(k_at + HALF, mask=k_mask, other=0.0)
        v_mask = live[:, None] & (d < DIM)[None, :]
        v = tl.load(v_cache_ptr + base + t[:, None] * DIM + d[None, :], mask=v_mask, other=0.0)
        scores = tl.dot(a_low, tl.trans(k_low), input_precision="ieee")
        scores += tl.dot(a_high, tl.trans(k_high), input_precision="ieee")
        scores = tl.where(live[None, :], scores * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        p = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(p, 1)
        result = result * shrink[:, None] + tl.dot(p.to(dtype), v, input_precision="ieee")
        top = new_top

    if split == SPLITS - 1:
        # The new token: its key and value go into the cache, and are attended from here.
        if QK_NORM:
            key_inverse = 1.0 / tl.sqrt(
                (tl.sum(k_new_low * k_new_low, 0) + tl.sum(k_new_high * k_new_high, 0)) / DIM + eps
            )
            k_new_low *= key_inverse * tl.load(k_gain_ptr + h, mask=h < HALF, other=0.0).to(tl.float32)
            k_new_high *= key_inverse * tl.load(k_gain_ptr + HALF + h, mask=h < HALF, other=0.0).to(tl.float32)
        new_low = (k_new_low * cos - k_new_high * sin).to(dtype)
        new_high = (k_new_high * cos + k_new_low * sin).to(dtype)
        at = base + length.to(tl.int64) * DIM
        tl.store(k_cache_ptr + at + h, new_low, mask=h < HALF)
        tl.store(k_cache_ptr + at + HALF + h, new_high, mask=h < HALF)
        tl.store(v_cache_ptr + at + d, v_new, mask=d < DIM)
        score = tl.sum(a_low.to(tl.float32) * new_low.to(tl.float32)[None, :], 1)
        score = (score + tl.sum(a_high.to(tl.float32) * new_high.to(tl.float32)[None, :], 1)) * scale
        new_top = tl.maximum(top, score)
        shrink = tl.exp(top - new_top)
        p_new = tl.exp(score - new_top)
        total = total * shrink + p_new
        result = result * shrink[:, None] + p_new[:, None] * v_new.to(tl.float32)[None, :]
        top = new_top

    heads = row * KV_HEADS * GROUP + head * GROUP + g
    out_mask = (g < GROUP)[:, None] & (d < DIM)[None, :]
    if SPLITS > 1:
        part = heads * SPLITS + split
        tl.store(parts_ptr + part[:, None].to(tl.int64) * DIM + d[None, :], result, mask=out_mask)
        tl.store(maxima_ptr + part, top, mask=g < GROUP)
        tl.store(sums_ptr + part, total, mask=g < GROUP)
        tl.debug_barrier()
        before = tl.atomic_add(done_ptr + row * KV_HEADS + head, 1, sem="acq_rel")
        if before == SPLITS - 1:
            tl.debug_barrier()
            s = tl.arange(0, SPLITS)
            for i in tl.static_range(GROUP):
                every = (row * KV_HEADS * GROUP + head * GROUP + i) * SPLITS + s
                tops = tl.load(maxima_ptr + every, cache_modifier=".cg")
                sums = tl.load(sums_ptr + every, cache_modifier=".cg")
                pieces = tl.load(
                    parts_ptr + every[:, None].to(tl.int64) * DIM + d[None, :],
                    mask=(d < DIM)[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                weights = tl.exp(tops - tl.max(tops, 0))
                y = tl.sum(weights[:, None] * pieces, 0) / tl.sum(weights * sums, 0)
                at = (row * KV_HEADS * GROUP + head * GROUP + i) * DIM + d
                tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=d < DIM)
            tl.store(done_ptr + row * KV_HEADS + head, 0)
    else:
        y = (result / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + heads[:, None] * DIM + d[None, :], y, mask=out_mask)


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
) -> Tensor:
    """Attention of one new token a row; writes its key and value into the cache at `lengths`, and `out`.

    q (rows, heads·dim), k and v (rows, kv_heads·dim) before rope, rows may be strided; cos, sin (positions, dim/2)
    float32; lengths (rows,) int32, the tokens already in the cache; caches (rows, kv_heads, capacity, dim), contiguous;
    out (rows, heads·dim), contiguous. q_norm and k_norm are RMSNorms over a head, before rope (Qwen3).
    """
    rows, kv_heads, capacity, dim = k_cache.shape
    group = q.shape[1] // (kv_heads * dim)
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
        dim**-0.5 if scale is None else scale,
        q_norm.eps if q_norm else 0.0,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PADDED=max(_MIN_DOT, triton.next_power_of_2(group)),
        DIM=dim,
        HALF_PADDED=max(_MIN_DOT, triton.next_power_of_2(dim // 2)),
        DIM_PADDED=max(_MIN_DOT, triton.next_power_of_2(dim)),
        BLOCK=_BLOCK,
        SPLITS=scratch.splits,
        QK_NORM=q_norm is not None,
        OVERLAP=overlap,
        num_warps=4,
        num_stages=3,
        **({"launch_pdl": True} if overlap else {}),
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
    """The same in plain PyTorch, row by row."""
    rows, kv_heads, _, dim = k_cache.shape
    scale = dim**-0.5 if scale is None else scale
    results = []
    for row in range(rows):
        n = int(lengths[row])
        new_k = _turned(q_or_k=k[row].view(kv_heads, dim), norm=k_norm, cos=cos[n], sin=sin[n])
        new_q = _turned(q_or_k=q[row].view(-1, dim), norm=q_norm, cos=cos[n], sin=sin[n]).to(k_cache.dtype).float()
        k_cache[row, :, n] = new_k.to(k_cache.dtype)
        v_cache[row, :, n] = v[row].view(kv_heads, dim).to(v_cache.dtype)
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
