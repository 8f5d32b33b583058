"""AdamW with moments in 8 bits in one kernel, as `hayless.kernels.adamw8bit` says: read, move, round again.

Everything is read and written once. No table is looked into, which costs more than the arithmetic: a value's decade and
its step there follow from the bits of a number, both ways. All arithmetic is in float32 (Triton takes a literal that is
no normal float32 for a float64, and everything after it).

Zero has rank 0, or 1 without signs. The values of decade d have the ranks s … 2s − 1, where s = 2ᵈ is how many steps
the decade has, twice as many without signs; behind the last is the value 1. Rank s + j is the value
10^(d−6) · (0.1 + 0.9 · (j + ½) / s), which is within 1e-6 of `hayless.kernels.blockwise`'s map.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.adamw8bit import Moment, Step

_ROWS, _WARPS = 2, 1
"""Blocks of 256 elements that a program moves, and its warps; of longer blocks fewer, one at least."""


@triton.jit
def _value(code, SIGNED: tl.constexpr):
    """The value that a code stands for."""
    LAST: tl.constexpr = 6 if SIGNED else 7
    rank = tl.abs(code - 127) if SIGNED else code + 1
    wide = rank.to(tl.float32)
    exponent = wide.to(tl.int32, bitcast=True) >> 23  # log2(s), and 127
    per_step = ((254 - exponent) << 23).to(tl.float32, bitcast=True)  # 1 / s
    decade = tl.exp2((exponent - (127 + LAST)).to(tl.float32) * 3.3219280949)
    value = decade * (per_step * (0.9 * wide + 0.45) - 0.8)
    value = tl.where(rank == 2 << LAST, 1.0, value)
    if SIGNED:
        return tl.where(code < 127, -value, value)
    else:
        return tl.where(code == 0, 0.0, value)


@triton.jit
def _code(share, SIGNED: tl.constexpr):
    """The place of the value nearest to `share`, between −1 and 1, or 0 and 1."""
    FIRST: tl.constexpr = 0 if SIGNED else 1  # log2(s) of the first decade
    size = tl.abs(share)
    # A float's bits are its logarithm but for 0.086, so this decade is the number's or the next above.
    tenfold = size.to(tl.int32, bitcast=True).to(tl.float32) * (0.30102999566 / 8388608.0)
    decade = tl.maximum(tenfold + (6.5265 - 127 * 0.30102999566), 0.0) + 12582912.0  # rounded, in the lowest bits
    first = decade == 12582912.0
    steps = ((decade.to(tl.int32, bitcast=True) << 23) + ((127 + FIRST) << 23)).to(tl.float32, bitcast=True)
    # The slope is s · 10^(6−d) / 0.9, so that 0.1 to 1 of a decade become s to 2s.
    slope = tl.exp2((decade - 12582912.0) * (1.0 - 3.3219280949) + (FIRST + 6 * 3.3219280949 + 0.1520030934))
    place = size * slope + steps * 0.8888888889
    # Between two decades the middle lies 0.2 steps up; below the first one zero is next.
    NEAR_ZERO: tl.constexpr = 0.175 / 0.9 if SIGNED else 0.0625 / 0.9 * 2
    below = place < steps + tl.where(first, NEAR_ZERO, 0.2)
    place = tl.where(below, tl.minimum(5.0 * place - 4.0 * steps, steps - 0.5), place)
    if SIGNED:
        place = tl.where(share > 1 - 0.225 / 64, 128.5, place)
        rank = (place + 8388607.5).to(tl.int32, bitcast=True) & 0xFF  # rounded down
        return 127 + tl.where(share < 0, -rank, rank)
    else:
        place = tl.where(share > 1 - 0.225 / 128, 256.5, tl.maximum(place, 1.5))
        return (place + 8388606.5).to(tl.int32, bitcast=True) & 0xFF  # the rank, from which codes are one off


@triton.jit
def _read(values_ptr, scales_ptr, at, row, there, in_rows, CODED: tl.constexpr, SIGNED: tl.constexpr):
    if CODED:
        codes = tl.load(values_ptr + at, mask=there, other=0).to(tl.int32)
        scales = tl.load(scales_ptr + row, mask=in_rows, other=0.0)
        return tl.where(there, _value(codes, SIGNED) * scales[:, None], 0.0)
    else:
        return tl.load(values_ptr + at, mask=there, other=0.0)


@triton.jit
def _write(values, values_ptr, scales_ptr, at, row, there, in_rows, CODED: tl.constexpr, SIGNED: tl.constexpr):
    if CODED:
        scales = tl.max(tl.abs(values), 1)
        shares = values * (1.0 / tl.maximum(scales, 1.2e-38))[:, None]
        tl.store(values_ptr + at, _code(shares, SIGNED).to(tl.uint8), mask=there)
        tl.store(scales_ptr + row, scales, mask=in_rows)
    else:
        tl.store(values_ptr + at, values, mask=there)


@triton.jit
def _move(
    weight_ptr,
    gradient_ptr,
    first_ptr,
    first_scales_ptr,
    second_ptr,
    second_scales_ptr,
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
    first = _read(first_ptr, first_scales_ptr, at, row, there, in_rows, CODED, True)
    second = _read(second_ptr, second_scales_ptr, at, row, there, in_rows, CODED, False)
    first += (1.0 - one) * (gradient - first)
    second = second * two + (1.0 - two) * (gradient * gradient)
    weight = weight * kept_weight - rate * (first / (tl.sqrt(second) * root + eps))
    tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=there)
    tl.debug_barrier()  # all scales were read
    _write(first, first_ptr, first_scales_ptr, at, row, there, in_rows, CODED, True)
    _write(second, second_ptr, second_scales_ptr, at, row, there, in_rows, CODED, False)


def move(weight: Tensor, gradient: Tensor, first: Moment, second: Moment, step: Step, block: int) -> None:
    """Move `weight` (n,) by `gradient`, both contiguous, and both moments."""
    elements, (one, two) = weight.numel(), step.betas
    width = triton.next_power_of_2(block)
    rows = max(1, 256 * _ROWS // width)
    _move[(triton.cdiv(elements, block * rows),)](
        weight,
        gradient,
        first.values,
        first.values if first.scales is None else first.scales,
        second.values,
        second.values if second.scales is None else second.scales,
        elements,
        block,
        1 - step.rate * step.decay,
        step.rate / (1 - one**step.number),
        one,
        two,
        1 / math.sqrt(1 - two**step.number),
        step.eps,
        CODED=first.scales is not None,
        ROWS=rows,
        WIDTH=width,
        num_warps=max(_WARPS, width // 2048),
    )
