"""AdaLomo's move of a matrix in four kernels and of a vector in one, as `hayless.kernels.adalomo` says.

A matrix is cut into tiles of GROUP × WIDTH elements, a program each, which reads its tile three times: for sums of
squares by row and by column, for the norms of update and weight, and to move. Sums of tiles are added up in the order
of the tiles, so that equal inputs give equal bits. All arithmetic is in float32. Shapes as there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.adalomo import Step
from hayless.kernels.adalomo_sizes import BLOCK, tile

_STRIPE = 16
"""Rows of a tile that are read at once."""


@triton.jit
def _mix(old, new, share):
    """old + share · (new − old), as `torch.lerp` rounds it."""
    return tl.where(share < 0.5, old + share * (new - old), new - (new - old) * (1.0 - share))


@triton.jit
def _sums(
    gradient_ptr,
    by_row_ptr,
    by_column_ptr,
    rows,
    columns,
    eps,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIPE: tl.constexpr,
):
    group, block = tl.program_id(0), tl.program_id(1)
    column = block * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((STRIPE, WIDTH), tl.float32)
    for start in range(0, GROUP, STRIPE):
        row = group * GROUP + start + tl.arange(0, STRIPE)
        there = (row[:, None] < rows) & (column[None, :] < columns)
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        gradient = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
        squares = tl.where(there, gradient * gradient + eps, 0.0)
        total += squares
        tl.store(by_row_ptr + block * rows + row, tl.sum(squares, 1), mask=row < rows)
    tl.store(by_column_ptr + group * columns + column, tl.sum(total, 0), mask=column < columns)


@triton.jit
def _moments(
    by_row_ptr,
    by_column_ptr,
    rows_ptr,
    columns_ptr,
    totals_ptr,
    rows,
    columns,
    groups,
    blocks,
    row_programs,
    share,
    BLOCK: tl.constexpr,
):
    """The first programs take rows, and write the sums of theirs; the others columns."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    if program < row_programs:
        row = program * BLOCK + tl.arange(0, BLOCK)
        there = row < rows
        for block in range(0, blocks):
            total += tl.load(by_row_ptr + block * rows + row, mask=there, other=0.0)
        old = tl.load(rows_ptr + row, mask=there, other=0.0)
        new = tl.where(there, _mix(old, total / columns, share), 0.0)
        tl.store(rows_ptr + row, new, mask=there)
        tl.store(totals_ptr + program, tl.sum(new, 0))
    else:
        column = (program - row_programs) * BLOCK + tl.arange(0, BLOCK)
        there = column < columns
        for group in range(0, groups):
            total += tl.load(by_column_ptr + group * columns + column, mask=there, other=0.0)
        old = tl.load(columns_ptr + column, mask=there, other=0.0)
        tl.store(columns_ptr + column, _mix(old, total / rows, share), mask=there)


@triton.jit
def _total(parts_ptr, count, BLOCK: tl.constexpr):
    """The sum of some numbers."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(parts_ptr + at, mask=at < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _factor(squares, weight_squares, elements, rate, least, threshold):
    """The relative step, and what an update with these squares is multiplied by before it is taken from the weight."""
    step = tl.maximum(tl.sqrt(weight_squares / elements), least) * rate
    return step, step / tl.maximum(tl.sqrt(squares / elements) / threshold, 1.0)


@triton.jit
def _update(gradient_ptr, at, there, rows_ptr, row, rows, mean, by_column):
    """The gradient over the root of its second moment, which is a product of what is known of rows and columns."""
    by_row = tl.rsqrt(tl.load(rows_ptr + row, mask=row < rows, other=1.0) / mean)
    gradient = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
    return gradient * by_row[:, None] * by_column[None, :]


@triton.jit
def _norms(
    weight_ptr,
    gradient_ptr,
    rows_ptr,
    columns_ptr,
    totals_ptr,
    parts_ptr,
    rows,
    columns,
    row_programs,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group, block = tl.program_id(0), tl.program_id(1)
    mean = _total(totals_ptr, row_programs, BLOCK) / rows
    column = block * WIDTH + tl.arange(0, WIDTH)
    by_column = tl.rsqrt(tl.load(columns_ptr + column, mask=column < columns, other=1.0))
    squares = tl.zeros((STRIPE, WIDTH), tl.float32)
    weight_squares = tl.zeros((STRIPE, WIDTH), tl.float32)
    for start in range(0, GROUP, STRIPE):
        row = group * GROUP + start + tl.arange(0, STRIPE)
        there = (row[:, None] < rows) & (column[None, :] < columns)
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        update = _update(gradient_ptr, at, there, rows_ptr, row, rows, mean, by_column)
        squares += update * update
        weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
        weight_squares += weight * weight
    place, count = block * tl.num_programs(0) + group, tl.num_programs(0) * tl.num_programs(1)
    tl.store(parts_ptr + place, tl.sum(tl.sum(squares, 1), 0))
    tl.store(parts_ptr + count + place, tl.sum(tl.sum(weight_squares, 1), 0))


@triton.jit
def _move(
    weight_ptr,
    gradient_ptr,
    rows_ptr,
    columns_ptr,
    totals_ptr,
    parts_ptr,
    rows,
    columns,
    row_programs,
    elements,
    rate,
    decay,
    least,
    threshold,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group, block = tl.program_id(0), tl.program_id(1)
    count = tl.num_programs(0) * tl.num_programs(1)
    step, factor = _factor(
        _total(parts_ptr, count, BLOCK), _total(parts_ptr + count, count, BLOCK), elements, rate, least, threshold
    )
    mean = _total(totals_ptr, row_programs, BLOCK) / rows
    column = block * WIDTH + tl.arange(0, WIDTH)
    by_column = tl.rsqrt(tl.load(columns_ptr + column, mask=column < columns, other=1.0))
    for start in range(0, GROUP, STRIPE):
        row = group * GROUP + start + tl.arange(0, STRIPE)
        there = (row[:, None] < rows) & (column[None, :] < columns)
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        update = _update(gradient_ptr, at, there, rows_ptr, row, rows, mean, by_column)
        weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
        weight = weight * (1.0 - step * decay) - update * factor
        tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=there)


def move_matrix(weight: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, step: Step) -> None:
    """A matrix; everything is contiguous."""
    if not weight.numel():
        return
    height, length = weight.shape
    group, width = tile(height)
    groups, blocks = triton.cdiv(height, group), triton.cdiv(length, width)
    row_programs, column_programs = triton.cdiv(height, BLOCK), triton.cdiv(length, BLOCK)
    sizes = [4 * triton.cdiv(size, 4) for size in (blocks * height, groups * length, row_programs, 2 * groups * blocks)]
    scratch = torch.empty(sum(sizes), dtype=torch.float32, device=weight.device)
    by_row, by_column, totals, parts = scratch.split(sizes)
    how = {"GROUP": group, "WIDTH": width, "STRIPE": _STRIPE, "num_warps": 4}
    shape = (height, length)
    _sums[groups, blocks](gradient, by_row, by_column, *shape, step.eps, **how)
    _moments[(row_programs + column_programs,)](
        by_row,
        by_column,
        rows,
        columns,
        totals,
        *shape,
        groups,
        blocks,
        row_programs,
        1 - step.beta,
        BLOCK=BLOCK,
        num_warps=4,
    )
    read = (weight, gradient, rows, columns, totals, parts, *shape, row_programs)
    _norms[groups, blocks](*read, **how, BLOCK=BLOCK)
    options = (weight.numel(), step.rate, step.decay, step.least_scale, step.clip_threshold)
    _move[groups, blocks](*read, *options, **how, BLOCK=BLOCK)


@triton.jit
def _vector(
    weight_ptr,
    gradient_ptr,
    second_ptr,
    elements,
    share,
    rate,
    decay,
    eps,
    least,
    threshold,
    BLOCK: tl.constexpr,
):
    squares = tl.zeros((BLOCK,), tl.float32)
    weight_squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, elements, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < elements
        gradient = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
        second = _mix(tl.load(second_ptr + at, mask=there, other=1.0), gradient * gradient + eps, share)
        tl.store(second_ptr + at, second, mask=there)
        squares += tl.where(there, gradient * gradient / second, 0.0)
        weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
        weight_squares += weight * weight
    step, factor = _factor(tl.sum(squares, 0), tl.sum(weight_squares, 0), elements, rate, least, threshold)
    tl.debug_barrier()  # the second moment is read again, perhaps by other threads
    for start in range(0, elements, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < elements
        update = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
        update = update * tl.rsqrt(tl.load(second_ptr + at, mask=there, other=1.0))
        weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
        weight = weight * (1.0 - step * decay) - update * factor
        tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=there)


def move_vector(weight: Tensor, gradient: Tensor, second: Tensor, step: Step) -> None:
    """A vector; everything is contiguous."""
    options = (1 - step.beta, step.rate, step.decay, step.eps, step.least_scale, step.clip_threshold)
    _vector[(1,)](weight, gradient, second, weight.numel(), *options, BLOCK=BLOCK, num_warps=4)
