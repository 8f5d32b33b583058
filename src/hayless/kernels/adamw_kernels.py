"""AdamW's move of one tensor in one kernel, as `hayless.kernels.adamw` says: everything is read and written once. All
arithmetic is in float32, but for the two powers of betas, of which little is left when they are taken from 1."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from hayless.kernels.adamw import Options, Part

_BLOCK, _WARPS = 2048, 4
"""Elements that a program moves, and its warps."""


@triton.jit
def _move(
    weight_ptr,
    gradient_ptr,
    first_ptr,
    second_ptr,
    step_ptr,
    elements,
    factor,
    rate,
    kept_weight,
    one,
    two,
    log_one,
    log_two,
    eps,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < elements
    gradient = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32) * factor
    weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
    first = tl.load(first_ptr + at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + at, mask=there, other=0.0).to(tl.float32)
    step = tl.load(step_ptr).to(tl.float32)
    first_share = (1.0 - tl.exp2((step * log_one).to(tl.float64))).to(tl.float32)
    second_share = (1.0 - tl.exp2((step * log_two).to(tl.float64))).to(tl.float32)
    first += (1.0 - one) * (gradient - first)
    second = second * two + (1.0 - two) * (gradient * gradient)
    divisor = tl.sqrt(second) / tl.sqrt(second_share) + eps
    weight = weight * kept_weight - (rate / first_share) * (first / divisor)
    tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=there)
    tl.store(first_ptr + at, first.to(first_ptr.dtype.element_ty), mask=there)
    tl.store(second_ptr + at, second.to(second_ptr.dtype.element_ty), mask=there)


def move(part: Part, options: Options, factor: float) -> None:
    """Move a contiguous part by its gradient times `factor`; its step counts this move already."""
    elements, (one, two) = part.weight.numel(), options.betas
    _move[(triton.cdiv(elements, _BLOCK),)](
        part.weight,
        part.gradient.contiguous(),
        part.first,
        part.second,
        part.step,
        elements,
        factor,
        options.rate,
        1 - options.rate * options.decay,
        one,
        two,
        # A beta of 0 leaves nothing of what was before.
        math.log2(one) if one else -1e9,
        math.log2(two) if two else -1e9,
        options.eps,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
