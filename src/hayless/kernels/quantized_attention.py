"""New tokens' attention over a quantized cache, which reads codes and takes the new tokens in.

As `hayless.kernels.attention`, but that a row's older keys and values lie there as codes of 8, 4 or 2 bits (Liu and
others 2024, *KIVI*; see `quantized_cache`), and the latest as they are, in rings. Codes become numbers in registers,
or are read by the kernel of `coded_attention` where that can, which leaves the latest tokens and the join of all parts
to this one. The last of the programs that share a row's keys puts the new key and value into the rings, and quantizes
what is no longer among the latest: R keys at once when as many are there, by groups of tokens of a channel, and the
value R tokens back, by groups of its channels. Nobody reads what it writes, so no program waits for another: a ring of
values has R + 1 places, and codes are read only as far as they were there before. Which heads and groups it takes says
`hayless.core.cache_form.CacheForm.why_no_kernel`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hayless.kernels.attention import _MIN_DOT, Scratch, _fold, _norm, _turn, _turned
from hayless.kernels.coded_attention import coded_attention, unsupported
from hayless.kernels.linear import Norm, overlapping
from hayless.kernels.quantized_cache import Held, found, take_in
from hayless.kernels.quantized_tiles import _hold_keys, _hold_value, _keys, _values

_BLOCK = 64
_CHUNK = 32
"""Channels of keys that are quantized at a time."""


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
    k_codes_ptr,
    k_step_ptr,
    k_least_ptr,
    k_latest_ptr,
    v_codes_ptr,
    v_step_ptr,
    v_least_ptr,
    v_latest_ptr,
    parts_ptr,
    maxima_ptr,
    sums_ptr,
    done_ptr,
    out_ptr,
    slots,
    scale,
    eps,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLITS: tl.constexpr,
    QK_NORM: tl.constexpr,
    CODED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    # With CODED the other parts are there: one program takes what they leave.
    split = SPLITS - 1 if CODED else tl.program_id(2)
    HALF: tl.constexpr = DIM // 2
    SHARED: tl.constexpr = min(GROUP, BLOCK)
    i = tl.arange(0, HEADS_PADDED)
    h = tl.arange(0, HALF)
    d = tl.arange(0, DIM)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    length = tl.load(lengths_ptr + row)
    place = (row * KV_HEADS + head).to(tl.int64)
    k_codes_ptr += place * slots * (DIM * BITS // 8)
    v_codes_ptr += place * slots * (DIM * BITS // 8)
    k_step_ptr += place * (slots // GROUP) * DIM
    k_least_ptr += place * (slots // GROUP) * DIM
    v_step_ptr += place * slots * (DIM // CHANNELS)
    v_least_ptr += place * slots * (DIM // CHANNELS)
    k_latest_ptr += place * RESIDUAL * DIM
    v_latest_ptr += place * (RESIDUAL + 1) * DIM
    dtype = k_latest_ptr.dtype.element_ty
    keys = length // RESIDUAL * RESIDUAL
    values = tl.maximum(length - RESIDUAL, 0)
    # Every share begins with a group of keys, and so does what lies in rings.
    coded = values // SHARED * SHARED
    share = tl.cdiv(tl.cdiv(length, SPLITS), SHARED) * SHARED
    start = coded if CODED else split * share
    end = length if CODED else tl.minimum(start + share, length)

    heads = (i < HEADS)[:, None]
    q_at = q_ptr + row * q_stride + (head * HEADS + i)[:, None] * DIM + h[None, :]
    q_low = tl.load(q_at, mask=heads, other=0.0).to(tl.float32)
    q_high = tl.load(q_at + HALF, mask=heads, other=0.0).to(tl.float32)
    if QK_NORM:
        q_low, q_high = _norm(q_low, q_high, q_gain_ptr, h, eps, HALF)
    a_low, a_high = _turn(q_low, q_high, cos_ptr, sin_ptr, length + i * 0, h, heads, HALF)
    a_low, a_high = a_low.to(dtype), a_high.to(dtype)

    top = tl.full((HEADS_PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS_PADDED,), tl.float32)
    result = tl.zeros((HEADS_PADDED, DIM), tl.float32)
    until = tl.minimum(end, coded)
    for first in range(start, until, BLOCK):
        k_low = _keys(k_codes_ptr, k_step_ptr, k_least_ptr, first, until, 0, BITS, GROUP, DIM, BLOCK).to(dtype)
        k_high = _keys(k_codes_ptr, k_step_ptr, k_least_ptr, first, until, HALF, BITS, GROUP, DIM, BLOCK).to(dtype)
        v = _values(v_codes_ptr, v_step_ptr, v_least_ptr, first, until, BITS, CHANNELS, DIM, BLOCK).to(dtype)
        live = first + tl.arange(0, BLOCK) < until
        top, total, result = _fold(top, total, result, a_low, a_high, k_low, k_high, v, live[None, :], scale)
    for first in range(tl.maximum(start, coded), end, BLOCK):
        # Where codes end and rings begin: keys and values are in one or the other.
        t = first + tl.arange(0, BLOCK)
        k_until, v_until = tl.minimum(end, keys), tl.minimum(end, values)
        k_low = _keys(k_codes_ptr, k_step_ptr, k_least_ptr, first, k_until, 0, BITS, GROUP, DIM, BLOCK).to(dtype)
        k_high = _keys(k_codes_ptr, k_step_ptr, k_least_ptr, first, k_until, HALF, BITS, GROUP, DIM, BLOCK).to(dtype)
        v = _values(v_codes_ptr, v_step_ptr, v_least_ptr, first, v_until, BITS, CHANNELS, DIM, BLOCK).to(dtype)
        k_new = ((t >= keys) & (t < end))[:, None]
        k_at = k_latest_ptr + (t % RESIDUAL)[:, None] * DIM + h[None, :]
        k_low = tl.where(k_new, tl.load(k_at, mask=k_new, other=0.0), k_low)
        k_high = tl.where(k_new, tl.load(k_at + HALF, mask=k_new, other=0.0), k_high)
        v_new = ((t >= values) & (t < end))[:, None]
        v_at = v_latest_ptr + (t % (RESIDUAL + 1))[:, None] * DIM + d[None, :]
        v = tl.where(v_new, tl.load(v_at, mask=v_new, other=0.0), v)
        top, total, result = _fold(top, total, result, a_low, a_high, k_low, k_high, v, (t < end)[None, :], scale)

    if split == SPLITS - 1:
        # The new token: the only one of a tile as small as a product takes.
        p = tl.arange(0, 16)
        only = (p == 0)[:, None]
        k_at = k_ptr + (row + p)[:, None] * k_stride + head * DIM + h[None, :]
        new_low = tl.load(k_at, mask=only, other=0.0).to(tl.float32)
        new_high = tl.load(k_at + HALF, mask=only, other=0.0).to(tl.float32)
        if QK_NORM:
            new_low, new_high = _norm(new_low, new_high, k_gain_ptr, h, eps, HALF)
        new_low, new_high = _turn(new_low, new_high, cos_ptr, sin_ptr, length + p, h, only, HALF)
        new_low, new_high = new_low.to(dtype), new_high.to(dtype)
        v_at = v_ptr + (row + p)[:, None] * v_stride + head * DIM + d[None, :]
        v_new = tl.load(v_at, mask=only, other=0.0).to(dtype)
        k_at = k_latest_ptr + (length % RESIDUAL + p)[:, None] * DIM + h[None, :]
        tl.store(k_at, new_low, mask=only)
        tl.store(k_at + HALF, new_high, mask=only)
        v_at = v_latest_ptr + (length % (RESIDUAL + 1) + p)[:, None] * DIM + d[None, :]
        tl.store(v_at, v_new, mask=only)
        seen = (p == 0)[None, :]
        top, total, result = _fold(top, total, result, a_low, a_high, new_low, new_high, v_new, seen, scale)

    out_at = out_ptr + ((row * KV_HEADS + head) * HEADS + i)[:, None] * DIM + d[None, :]
    if SPLITS > 1:
        part = ((row * KV_HEADS + head) * HEADS + i) * SPLITS + split
        tl.store(parts_ptr + part[:, None].to(tl.int64) * DIM + d[None, :], result, mask=heads)
        tl.store(maxima_ptr + part, top, mask=i < HEADS)
        tl.store(sums_ptr + part, total, mask=i < HEADS)
        tl.debug_barrier()
        if CODED:
            before = SPLITS - 1
        else:
            before = tl.atomic_add(done_ptr + row * KV_HEADS + head, 1, sem="acq_rel")
        if before == SPLITS - 1:
            tl.debug_barrier()
            s = tl.arange(0, SPLITS)
            every = ((row * KV_HEADS + head) * HEADS + i)[:, None] * SPLITS + s[None, :]
            there = (i < HEADS)[:, None]
            tops = tl.load(maxima_ptr + every, mask=there, other=0.0, cache_modifier=".cg")
            sums = tl.load(sums_ptr + every, mask=there, other=1.0, cache_modifier=".cg")
            most = tl.max(tops, 1)
            whole = tl.sum(tl.exp(tops - most[:, None]) * sums, 1)
            y = tl.zeros((HEADS_PADDED, DIM), tl.float32)
            for other in tl.static_range(0, SPLITS):
                part = ((row * KV_HEADS + head) * HEADS + i) * SPLITS + other
                weight = tl.exp(tl.load(maxima_ptr + part, mask=i < HEADS, other=0.0, cache_modifier=".cg") - most)
                at = parts_ptr + part[:, None].to(tl.int64) * DIM + d[None, :]
                y += weight[:, None] * tl.load(at, mask=heads, other=0.0, cache_modifier=".cg")
            tl.store(out_at, (y / whole[:, None]).to(out_ptr.dtype.element_ty), mask=heads)
            tl.store(done_ptr + row * KV_HEADS + head, 0)
    else:
        tl.store(out_at, (result / total[:, None]).to(out_ptr.dtype.element_ty), mask=heads)

    if split == SPLITS - 1:
        tl.debug_barrier()
        if (length + 1) % RESIDUAL == 0:
            first = length + 1 - RESIDUAL
            _hold_keys(k_latest_ptr, k_codes_ptr, k_step_ptr, k_least_ptr, first, BITS, GROUP, RESIDUAL, DIM, CHUNK)
        if length >= RESIDUAL:
            token = length - RESIDUAL
            _hold_value(v_latest_ptr, v_codes_ptr, v_step_ptr, v_least_ptr, token, BITS, CHANNELS, RESIDUAL, DIM)


def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    held: Held,
    out: Tensor,
    scratch: Scratch,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    overlap: bool = False,
) -> Tensor:
    """Attention of one new token of each row; takes its key and value in behind `lengths`, and writes `out`.

    q (rows, heads·dim), k and v (rows, kv_heads·dim) before rope, may be strided; cos, sin (places, dim/2) float32;
    lengths (rows,) int32, the tokens already in the cache; `held` with rows and kv_heads, contiguous; out
    (rows, heads·dim), contiguous. q_norm and k_norm are RMSNorms over a head, before rope.
    """
    rows, kv_heads, slots, _ = held.k_codes.shape
    dim = held.k_latest.shape[-1]
    heads = q.shape[1] // (kv_heads * dim)
    coded = scratch.splits > 1 and not unsupported(q, held)
    if coded:
        coded_attention(q, cos, sin, lengths, held, scratch, shared=min(held.group, _BLOCK), q_norm=q_norm)
    _attention[(rows, kv_heads, 1 if coded else scratch.splits)](
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
        *held.tensors,
        scratch.parts,
        scratch.maxima,
        scratch.sums,
        scratch.done,
        out,
        slots,
        dim**-0.5,
        q_norm.eps if q_norm else 0.0,
        KV_HEADS=kv_heads,
        HEADS=heads,
        HEADS_PADDED=max(_MIN_DOT, triton.next_power_of_2(heads)),
        DIM=dim,
        BITS=held.bits,
        GROUP=held.group,
        CHANNELS=held.channels,
        RESIDUAL=held.residual,
        BLOCK=_BLOCK,
        CHUNK=min(_CHUNK, dim),
        SPLITS=scratch.splits,
        QK_NORM=q_norm is not None,
        CODED=coded,
        OVERLAP=overlap,
        num_warps=4,
        num_stages=2,
        **overlapping(overlap),
    )
    return out


def quantized_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    held: Held,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> Tensor:
    """The same in plain PyTorch, row by row."""
    dim, kv_heads = held.k_latest.shape[-1], held.k_codes.shape[1]
    results = []
    for row, n in enumerate(lengths.tolist()):
        mine = held[row]
        keys, values = found(mine, n)
        new_k = _turned(k[row].view(kv_heads, dim), k_norm, cos[n], sin[n]).to(keys.dtype)
        new_q = _turned(q[row].view(-1, dim), q_norm, cos[n], sin[n]).to(keys.dtype).float()
        new_v = v[row].view(kv_heads, dim).to(values.dtype)
        keys, values = torch.cat([keys, new_k[:, None]], 1).float(), torch.cat([values, new_v[:, None]], 1).float()
        scores = new_q.view(kv_heads, -1, dim) @ keys.transpose(1, 2) * dim**-0.5
        results.append((scores.softmax(-1) @ values).reshape(-1))
        take_in(mine, n, new_k, new_v)
    return torch.stack(results).to(q.dtype)
