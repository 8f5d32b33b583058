"""What moving the weights takes, after the backward pass or in it: bytes beside the optimizer's state, and work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hayless.core.allocator import allocated_bytes
from hayless.core.dtypes import item_bytes
from hayless.core.errors import RequestError
from hayless.core.ledger import Row
from hayless.core.work import Kernel, Work, eager, elementwise

if TYPE_CHECKING:
    from hayless.core.cost import TrainShape

MASTER_CHUNK_BYTES = 64 * 2**20
"""float32 gradients that exist at once while `master` moves the weights (a larger tensor stands alone)."""


def refuse_accumulation(micro_batches: int) -> None:
    """RequestError for several micro-batches an update where weights are moved in the backward pass."""
    if micro_batches > 1:
        raise RequestError(
            f"{micro_batches} micro-batches an update are not possible where each weight is moved as soon as its"
            " gradient is there: those of the first would be gone before those of the second could be added.",
            hint="Set micro_batch_size to batch_size; with checkpointing more rows fit at once.",
        )


def moving_bytes(shape_of_one: tuple[int, ...], shape: TrainShape) -> int:
    """Bytes that exist while one parameter is moved: the optimizer's, and in `master` its gradient in float32."""
    widened = 4 * math.prod(shape_of_one) if shape.precision == "master" else 0
    return widened + shape.scratch_bytes(shape_of_one, shape.moved_dtype)


def stepping_bytes(trained: Sequence[Row], shape: TrainShape) -> int:
    """Bytes that exist while the weights are moved after the backward pass, beside weights, gradients and states."""
    widening = unused = 0
    if shape.device == "cuda":
        sizes = ((row.count, math.prod(row.shape) * item_bytes(shape.dtype(row))) for row in trained)
        unused = sum(count * (allocated_bytes(size) - size) for count, size in sizes)
    if shape.precision == "master":
        elements = sum(row.count * math.prod(row.shape) for row in trained)
        largest = 4 * max(math.prod(row.shape) for row in trained)
        widening = min(4 * elements, max(MASTER_CHUNK_BYTES, largest))
    scratch = max(shape.scratch_bytes(row.shape, shape.moved_dtype) for row in trained)
    return widening + unused + scratch


def moving_work(trained: Sequence[Row], shape: TrainShape) -> Work:
    """The norm of gradients, their clipping, the optimizer, and in `master` casts before and after it.

    The optimizer is launched as it says, what is done to gradients that wait together by few launches, and everything
    else for one weight after the other.
    """
    single: list[Kernel] = []
    many: list[Kernel] = []
    launches = 0
    for row in trained:
        elements = math.prod(row.shape)
        weight, moved = elements * item_bytes(shape.dtype(row)), elements * item_bytes(shape.moved_dtype)
        (single if shape.fused else many).append(elementwise(weight, row.count))
        if shape.precision == "master":
            single += [elementwise(weight + moved, row.count)] * 2
        if shape.clips:
            waiting = not shape.fused and shape.precision != "master"
            (many if waiting else single).append(elementwise(2 * moved, row.count))
        states = 2 * shape.state_bytes(row.shape, shape.moved_dtype)
        many.append(elementwise(shape.move_passes * moved + states, row.count))
        launches += row.count * shape.move_launches(row.shape)
    return eager(single) + replace(eager(many), launches=launches)
