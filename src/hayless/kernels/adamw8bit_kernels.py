"""AdamW with moments in 8 bits in one kernel, as `hayless.kernels.adamw8bit` says: read, move, round again.

Everything is read and written once. A code is not searched for among 256 values: a quotient's decade and its step there
give a place that is off by one at most, which the two middles beside it correct (`hayless.kernels.blockwise` has the
map). All arithmetic is in float32.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.adamw8bit import Moment, Step
from hayless.kernels.blockwise import map_on

_ELEMENTS = 2048
"""Elements of a program: as many whole blocks, one at least."""


@triton.jit
def _read(codes_ptr, scales_ptr, table_ptr, at, row, there, in_rows, CODED: tl.constexpr):
    if CODED:
        codes = tl.load(codes_ptr + at, mask=there, other=0).to(tl.int32)
        scales = tl.load(scales_ptr + row, mask=in_rows, other=0.0)
        return tl.where(there, tl.load(table_ptr + codes) * scales[:, None], 0.0)
    else:
        return tl.load(codes_ptr + at, mask=there, other=0.0)


@triton.jit
def _code(share, middles_ptr, SIGNED: tl.constexpr):
    """The place of the value nearest to `share`, the lower one of two as near."""
    size = tl.abs(share)
    decade = tl.ceil(tl.log2(tl.maximum(size, 1e-9)) * 0.3010299957) + 6.0
    decade = tl.minimum(tl.maximum(decade, 0.0), 6.0)
    steps = tl.exp2(decade + (0.0 if SIGNED else 1.0))
    step = tl.floor((size * tl.exp2((6.0 - decade) * 3.3219280949) - 0.1) / 0.9 * steps)
    step = tl.minimum(tl.maximum(step, 0.0), steps - 1.0)
    # Below a decade lie as many values as it has steps, less the one or two that the first decade lacks; and zero.
    rank = steps + step
    if SIGNED:
        place = (127.0 + tl.where(share < 0, -rank, rank)).to(tl.int32)
    else:
        place = (rank - 1.0).to(tl.int32)
    upper = tl.load(middles_ptr + place)
    lower = tl.load(middles_ptr + place - 1, mask=place > 0, other=float("-inf"))
    return place + tl.where(share > upper, 1, 0) - tl.where(share <= lower, 1, 0)


@triton.jit
def _write(
    values, codes_ptr, scales_ptr, middles_ptr, at, row, there, in_rows, CODED: tl.constexpr, SIGNED: tl.constexpr
):
    if CODED:
        scales = tl.max(tl.abs(values), 1)
        codes = _code(values / tl.maximum(scales, 1.1754943508e-38)[:, None], middles_ptr, SIGNED)
        tl.store(codes_ptr + at, codes.to(tl.uint8), mask=there)
        tl.store(scales_ptr + row, scales, mask=in_rows)
    else:
        tl.store(codes_ptr + at, values, mask=there)


@triton.jit
def _move(
    weight_ptr,
    gradient_ptr,
    first_ptr,
    first_scales_ptr,
    second_ptr,
    second_scales_ptr,
    signed_ptr,
    signed_middles_ptr,
    unsigned_ptr,
    unsigned_middles_ptr,
    elements,
    block,
    kept_weight,
    rate,
    one,
    two,
    root,
    eps,
    CODED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row.to(tl.int64)[:, None] * block + column[None, :]
    there = (column[None, :] < block) & (at < elements)
    in_rows = row.to(tl.int64) * block < elements
    gradient = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
    first = _read(first_ptr, first_scales_ptr, signed_ptr, at, row, there, in_rows, CODED)
    second = _read(second_ptr, second_scales_ptr, unsigned_ptr, at, row, there, in_rows, CODED)
    first += (1.0 - one) * (gradient - first)
    second = second * two + (1.0 - two) * (gradient * gradient)
    weight = weight * kept_weight - rate * (first / (tl.sqrt(second) / root + eps))
    tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=there)
    tl.debug_barrier()  # all scales were read
    _write(first, first_ptr, first_scales_ptr, signed_middles_ptr, at, row, there, in_rows, CODED, True)
    _write(second, second_ptr, second_scales_ptr, unsigned_middles_ptr, at, row, there, in_rows, CODED, False)


def move(weight: Tensor, gradient: Tensor, first: Moment, second: Moment, step: Step, block: int) -> None:
    """Move `weight` (n,) by `gradient`, both contiguous, and both moments."""
    elements, (one, two) = weight.numel(), step.betas
    signed, unsigned = (map_on(weight.device, each) for each in (True, False))
    width = triton.next_power_of_2(block)
    rows = max(1, _ELEMENTS // width)
    _move[(triton.cdiv(elements, block * rows),)](
        weight,
        gradient,
        first.values,
        first.values if first.scales is None else first.scales,
        second.values,
        second.values if second.scales is None else second.scales,
        *signed,
        *unsigned,
        elements,
        block,
        1 - step.rate * step.decay,
        step.rate / (1 - one**step.number),
        one,
        two,
        math.sqrt(1 - two**step.number),
        step.eps,
        CODED=first.scales is not None,
        ROWS=rows,
        WIDTH=width,
        num_warps=4,
    )
