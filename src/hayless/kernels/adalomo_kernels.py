"""AdaLomo's move of a matrix in one kernel and of a vector in another, as `hayless.kernels.adalomo` says.

A matrix is cut into tiles of GROUP × WIDTH elements, each of which is read three times: for sums of squares by row and
by column, for the norms of update and weight, and to move. As many programs as run at once share the tiles, and wait
for each other in between (a cooperative launch), since the host takes as long for a launch as the device for a small
matrix. Sums of tiles are added up in the order of the tiles, so that equal inputs give equal bits. All arithmetic is in
float32. Shapes as there.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.kernels.adalomo import Step
from hayless.kernels.adalomo_sizes import BLOCK, tile

_STRIPE = 16
"""Rows of a tile that are read at once."""
_PROGRAMS = 2
"""Programs of four warps that a processor runs at once."""


@triton.jit
def _mix(old, new, share):
    """old + share · (new − old), as `torch.lerp` rounds it."""
    return tl.where(share < 0.5, old + share * (new - old), new - (new - old) * (1.0 - share))


@triton.jit
def _lie(row, column, rows, columns):
    """Which elements of these rows and columns there are, and where they lie."""
    there = (row[:, None] < rows) & (column[None, :] < columns)
    return there, row.to(tl.int64)[:, None] * columns + column[None, :]


@triton.jit
def _sums(
    group,
    block,
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
    """A tile's sums of squares."""
    column = block * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((STRIPE, WIDTH), tl.float32)
    for start in range(0, GROUP, STRIPE):
        row = group * GROUP + start + tl.arange(0, STRIPE)
        there, at = _lie(row, column, rows, columns)
        gradient = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
        squares = tl.where(there, gradient * gradient + eps, 0.0)
        total += squares
        tl.store(by_row_ptr + block * rows + row, tl.sum(squares, 1), mask=row < rows)
    tl.store(by_column_ptr + group * columns + column, tl.sum(total, 0), mask=column < columns)


@triton.jit
def _moments(
    part,
    by_row_ptr,
    by_column_ptr,
    rows_ptr,
    columns_ptr,
    totals_ptr,
    rows,
    columns,
    groups,
    blocks,
    row_parts,
    share,
    BLOCK: tl.constexpr,
):
    """Part of the second moment. The first parts are rows, whose sums are kept; the others columns."""
    total = tl.zeros((BLOCK,), tl.float32)
    if part < row_parts:
        row = part * BLOCK + tl.arange(0, BLOCK)
        there = row < rows
        for block in range(0, blocks):
            total += tl.load(by_row_ptr + block * rows + row, mask=there, other=0.0)
        old = tl.load(rows_ptr + row, mask=there, other=0.0)
        new = tl.where(there, _mix(old, total / columns, share), 0.0)
        tl.store(rows_ptr + row, new, mask=there)
        tl.store(totals_ptr + part, tl.sum(new, 0))
    else:
        column = (part - row_parts) * BLOCK + tl.arange(0, BLOCK)
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
    group,
    block,
    weight_ptr,
    gradient_ptr,
    rows_ptr,
    columns_ptr,
    rows,
    columns,
    mean,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """The sums of squares of a tile's update and of its weights."""
    column = block * WIDTH + tl.arange(0, WIDTH)
    by_column = tl.rsqrt(tl.load(columns_ptr + column, mask=column < columns, other=1.0))
    squares = tl.zeros((STRIPE, WIDTH), tl.float32)
    weight_squares = tl.zeros((STRIPE, WIDTH), tl.float32)
    for start in range(0, GROUP, STRIPE):
        row = group * GROUP + start + tl.arange(0, STRIPE)
        there, at = _lie(row, column, rows, columns)
        update = _update(gradient_ptr, at, there, rows_ptr, row, rows, mean, by_column)
        squares += update * update
        weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
        weight_squares += weight * weight
    return tl.sum(tl.sum(squares, 1), 0), tl.sum(tl.sum(weight_squares, 1), 0)


@triton.jit
def _move(
    group,
    block,
    weight_ptr,
    gradient_ptr,
    rows_ptr,
    columns_ptr,
    rows,
    columns,
    mean,
    kept,
    factor,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIPE: tl.constexpr,
):
    column = block * WIDTH + tl.arange(0, WIDTH)
    by_column = tl.rsqrt(tl.load(columns_ptr + column, mask=column < columns, other=1.0))
    for start in range(0, GROUP, STRIPE):
        row = group * GROUP + start + tl.arange(0, STRIPE)
        there, at = _lie(row, column, rows, columns)
        update = _update(gradient_ptr, at, there, rows_ptr, row, rows, mean, by_column)
        weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
        weight = weight * kept - update * factor
        tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=there)


@triton.jit
def _meet(arrived_ptr, times):
    """Wait until all programs have been here so many times; what they wrote before is there then."""
    tl.debug_barrier()
    tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(arrived_ptr, 0, sem="acq_rel", scope="gpu") < times * tl.num_programs(0):
        pass
    tl.debug_barrier()


@triton.jit
def _matrix(
    weight_ptr,
    gradient_ptr,
    rows_ptr,
    columns_ptr,
    by_row_ptr,
    by_column_ptr,
    totals_ptr,
    parts_ptr,
    arrived_ptr,
    rows,
    columns,
    groups,
    blocks,
    row_parts,
    parts,
    elements,
    share,
    eps,
    rate,
    decay,
    least,
    threshold,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, programs, tiles = tl.program_id(0), tl.num_programs(0), groups * blocks
    for place in range(program, tiles, programs):
        group, block = place // blocks, place % blocks
        _sums(group, block, gradient_ptr, by_row_ptr, by_column_ptr, rows, columns, eps, GROUP, WIDTH, STRIPE)
    _meet(arrived_ptr, 1)
    for part in range(program, parts, programs):
        _moments(
            part,
            by_row_ptr,
            by_column_ptr,
            rows_ptr,
            columns_ptr,
            totals_ptr,
            rows,
            columns,
            groups,
            blocks,
            row_parts,
            share,
            BLOCK,
        )
    _meet(arrived_ptr, 2)
    mean = _total(totals_ptr, row_parts, BLOCK) / rows
    for place in range(program, tiles, programs):
        group, block = place // blocks, place % blocks
        squares, weight_squares = _norms(
            group, block, weight_ptr, gradient_ptr, rows_ptr, columns_ptr, rows, columns, mean, GROUP, WIDTH, STRIPE
        )
        tl.store(parts_ptr + block * groups + group, squares)
        tl.store(parts_ptr + tiles + block * groups + group, weight_squares)
    _meet(arrived_ptr, 3)
    squares, weight_squares = _total(parts_ptr, tiles, BLOCK), _total(parts_ptr + tiles, tiles, BLOCK)
    step, factor = _factor(squares, weight_squares, elements, rate, least, threshold)
    kept = 1.0 - step * decay
    for place in range(program, tiles, programs):
        group, block = place // blocks, place % blocks
        _move(
            group,
            block,
            weight_ptr,
            gradient_ptr,
            rows_ptr,
            columns_ptr,
            rows,
            columns,
            mean,
            kept,
            factor,
            GROUP,
            WIDTH,
            STRIPE,
        )


def move_matrix(weight: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, step: Step) -> None:
    """A matrix; everything is contiguous."""
    if not weight.numel():
        return
    height, length = weight.shape
    group, width = tile(height)
    groups, blocks = triton.cdiv(height, group), triton.cdiv(length, width)
    row_parts = triton.cdiv(height, BLOCK)
    parts = row_parts + triton.cdiv(length, BLOCK)
    sizes = [4 * triton.cdiv(size, 4) for size in (blocks * height, groups * length, row_parts, 2 * groups * blocks)]
    scratch = torch.empty(sum(sizes), dtype=torch.float32, device=weight.device)
    arrived = torch.zeros(1, dtype=torch.int32, device=weight.device)
    programs = min(_at_once(weight.device), max(groups * blocks, parts))
    _matrix[(programs,)](
        weight,
        gradient,
        rows,
        columns,
        *scratch.split(sizes),
        arrived,
        height,
        length,
        groups,
        blocks,
        row_parts,
        parts,
        weight.numel(),
        1 - step.beta,
        step.eps,
        step.rate,
        step.decay,
        step.least_scale,
        step.clip_threshold,
        GROUP=group,
        WIDTH=width,
        STRIPE=_STRIPE,
        BLOCK=BLOCK,
        num_warps=4,
        # Where programs run one after the other there is one.
        **({"launch_cooperative_grid": True} if weight.is_cuda else {}),
    )


@cache
def _at_once(device: torch.device) -> int:
    """Programs that run at once: one in Triton's interpreter, on the CPU."""
    if device.type != "cuda":
        return 1
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


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
