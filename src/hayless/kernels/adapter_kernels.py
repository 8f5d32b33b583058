"""The two kernels of `hayless.kernels.adapters`, for a token or a few of each row.

A step must read each row's A and B once; of a slot no more than its rank is read. `_shrink` makes Ax in parts along the
input, so that few rows fill the device too; `_expand` adds the parts in their order and multiplies by B. How the input
is cut up follows from its width and the bank's rank alone: a row's bits do not depend on the rows beside it. Sums are
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.adapters import MOST, Stack

_SPLITS = 8
_TILE = 8192
"""Numbers of A or B that a program holds at a time."""


@triton.jit
def _shrink(
    x_ptr,
    slots_ptr,
    a0_ptr,
    a1_ptr,
    a2_ptr,
    rank0_ptr,
    rank1_ptr,
    rank2_ptr,
    inner_ptr,
    positions,
    width,
    most,
    blocks,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots_ptr + token // positions).to(tl.int64)
    if slot >= 0:
        a_ptr, rank_ptr = a0_ptr, rank0_ptr
        if part == 1:
            a_ptr, rank_ptr = a1_ptr, rank1_ptr
        elif part == 2:
            a_ptr, rank_ptr = a2_ptr, rank2_ptr
        rank = tl.load(rank_ptr + slot)
        if rank > 0:
            row = tl.arange(0, RANK)
            column = tl.arange(0, COLUMNS)
            total = tl.zeros((RANK, COLUMNS), tl.float32)
            for block in range(0, blocks):
                at = (split * blocks + block) * COLUMNS + column
                x = tl.load(x_ptr + token.to(tl.int64) * width + at, mask=at < width, other=0.0)
                mask = (row < rank)[:, None] & (at < width)[None, :]
                place = (slot * most + row)[:, None] * width + at[None, :]
                a = tl.load(a_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first")
                total += a.to(tl.float32) * x.to(tl.float32)[None, :]
            part_at = (part * tl.num_programs(1) + split) * tl.num_programs(0) + token
            tl.store(inner_ptr + part_at.to(tl.int64) * RANK + row, tl.sum(total, 1))


@triton.jit
def _expand(
    inner_ptr,
    slots_ptr,
    b0_ptr,
    b1_ptr,
    b2_ptr,
    scale0_ptr,
    scale1_ptr,
    scale2_ptr,
    rank0_ptr,
    rank1_ptr,
    rank2_ptr,
    out0_ptr,
    out1_ptr,
    out2_ptr,
    n0,
    n1,
    n2,
    stride0,
    stride1,
    stride2,
    positions,
    most,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    token, block = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots_ptr + token // positions).to(tl.int64)
    if slot >= 0:
        part, n, stride = 0, n0, stride0
        b_ptr, scale_ptr, rank_ptr, out_ptr = b0_ptr, scale0_ptr, rank0_ptr, out0_ptr
        blocks0, blocks1 = tl.cdiv(n0, COLUMNS), tl.cdiv(n1, COLUMNS)
        if block >= blocks0 + blocks1:
            part, n, stride = 2, n2, stride2
            b_ptr, scale_ptr, rank_ptr, out_ptr = b2_ptr, scale2_ptr, rank2_ptr, out2_ptr
            block -= blocks0 + blocks1
        elif block >= blocks0:
            part, n, stride = 1, n1, stride1
            b_ptr, scale_ptr, rank_ptr, out_ptr = b1_ptr, scale1_ptr, rank1_ptr, out1_ptr
            block -= blocks0
        rank = tl.load(rank_ptr + slot)
        if rank > 0:
            row = tl.arange(0, RANK)
            column = block * COLUMNS + tl.arange(0, COLUMNS)
            mask = (row < rank)[:, None] & (column < n)[None, :]
            place = (slot * most + row)[:, None] * n + column[None, :]
            b = tl.load(b_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first")
            inner = tl.zeros((RANK,), tl.float32)
            for split in tl.static_range(SPLITS):
                part_at = (part * SPLITS + split) * tl.num_programs(0) + token
                inner += tl.load(inner_ptr + part_at.to(tl.int64) * RANK + row)
            y = tl.sum(b.to(tl.float32) * inner[:, None], 0) * tl.load(scale_ptr + slot)
            at = out_ptr + token.to(tl.int64) * stride + column
            y += tl.load(at, mask=column < n, other=0.0).to(tl.float32)
            tl.store(at, y.to(out_ptr.dtype.element_ty), mask=column < n)


def add_by_slots(outs: Sequence[Tensor], x: Tensor, stacks: Sequence[Stack], slots_b: Tensor) -> None:
    """outs[p] (n, o of p) += the branches of stacks[p] on x (n, i), 1 to 3 of one rank; see `add_branches`.

    x and all of the stacks are contiguous; the outs may be parts of wider rows. Others than 1 to 3 are a ValueError.
    """
    if not 1 <= len(stacks) <= MOST:
        raise ValueError(f"stacks: {len(stacks)} at once; allowed: 1 to {MOST}")
    tokens, width = x.shape
    most = stacks[0].a.shape[1]
    rank = triton.next_power_of_2(most)
    positions = tokens // len(slots_b)
    columns = min(triton.next_power_of_2(width), max(16, _TILE // rank))
    blocks = triton.cdiv(triton.cdiv(width, columns), _SPLITS)
    splits = triton.cdiv(triton.cdiv(width, columns), blocks)
    inner = torch.empty(len(stacks), splits, tokens, rank, dtype=torch.float32, device=x.device)
    three = [*stacks, *[stacks[0]] * (MOST - len(stacks))]
    _shrink[(tokens, splits, len(stacks))](
        x,
        slots_b,
        *(stack.a for stack in three),
        *(stack.rank for stack in three),
        inner,
        positions,
        width,
        most,
        blocks,
        RANK=rank,
        COLUMNS=columns,
        num_warps=4,
    )
    columns = max(16, _TILE // 2 // rank)
    counts = [*(out.shape[1] for out in outs), 0, 0][:MOST]
    targets = [*outs, *[outs[0]] * (MOST - len(outs))]
    _expand[(tokens, sum(triton.cdiv(count, columns) for count in counts))](
        inner,
        slots_b,
        *(stack.b for stack in three),
        *(stack.scale for stack in three),
        *(stack.rank for stack in three),
        *targets,
        *counts,
        *(out.stride(0) for out in targets),
        positions,
        most,
        RANK=rank,
        COLUMNS=columns,
        SPLITS=splits,
        num_warps=1,
    )
