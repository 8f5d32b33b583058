"""What a device does for a run: its kernels, read off a tape.

Every operation of eager PyTorch is about one kernel that reads its inputs and writes its results. Backward, each input
that needs a gradient has a kernel, and one more where it has a gradient already, to add them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hayless.core.tape import Op, Segment, Tape, Tensor, Unit

_ATTENTION_BACKWARD = 2.5
"""Products of fused attention backward for one forward: five for two, since the scores are computed again."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """`count` equal kernels: FLOPs of its products in `dtype` and bytes to and from memory, of each.

    `unit` is what computes the products; for `elementwise` there are none. `widened`: bytes of a packed factor in 16
    bits or more, which a device writes and reads that has no units for `dtype`.
    """

    unit: Unit
    dtype: str
    flops: float
    bytes: float
    count: float = 1.0
    widened: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a phase does: kernels, and how often the host launches something."""

    kernels: tuple[Kernel, ...] = ()
    launches: float = 0.0

    @property
    def flops(self) -> float:
        """FLOPs of all products."""
        return sum(kernel.flops * kernel.count for kernel in self.kernels)

    @property
    def moved_bytes(self) -> float:
        """Bytes to and from memory, if every result goes there and back."""
        return sum(kernel.bytes * kernel.count for kernel in self.kernels)

    def __add__(self, other: Work) -> Work:
        return Work(self.kernels + other.kernels, self.launches + other.launches)

    def times(self, count: float) -> Work:
        """The same work `count` times."""
        kernels = tuple(replace(kernel, count=kernel.count * count) for kernel in self.kernels)
        return Work(kernels, self.launches * count)


def eager(kernels: Iterable[Kernel]) -> Work:
    """The work of kernels that the host launches one by one; equal ones are counted together."""
    first: dict[str, Kernel] = {}
    counts: dict[str, float] = {}
    for kernel in kernels:
        key = f"{kernel.unit} {kernel.dtype} {kernel.flops} {kernel.bytes} {kernel.widened}"
        first.setdefault(key, kernel)
        counts[key] = counts.get(key, 0.0) + kernel.count
    return Work(tuple(replace(first[key], count=counts[key]) for key in first), sum(counts.values()))


def elementwise(moved: float, count: float = 1.0) -> Kernel:
    """A kernel without products."""
    return Kernel("elementwise", "float32", 0.0, moved, count)


def forward_work(tape: Tape) -> Work:
    """A tape run forward."""
    return eager(kernel for segment in tape.segments for kernel in _times(_forward(segment), segment))


def backward_work(tape: Tape) -> Work:
    """A tape's gradients, blocks that are computed again included; nothing where nothing trains."""
    if tape.result is None or not tape.result.grad:
        return Work()
    reached: set[Tensor] = {tape.result}
    found: list[Kernel] = []
    for segment in reversed(tape.segments):
        own: list[Kernel] = []
        if segment.checkpointed and any(tensor in reached for op in segment.ops for tensor in op.outputs):
            own += _forward(segment, again=True)
        for op in reversed(segment.ops):
            if any(tensor in reached for tensor in op.outputs):
                own += _backward(op, reached)
        found += _times(own, segment)
    return eager(found)


def _times(kernels: list[Kernel], segment: Segment) -> list[Kernel]:
    """The kernels of a segment, for as many as it stands for."""
    if segment.times == 1:
        return kernels
    return [replace(kernel, count=kernel.count * segment.times) for kernel in kernels]


def _forward(segment: Segment, *, again: bool = False) -> list[Kernel]:
    """Kernels of operations that make something; views and what only keeps tensors alive are none. `again`: of those
    whose results were not kept."""
    found = []
    for op in segment.ops:
        if not op.outputs or _is_view(op) or (again and segment.kept(op)):
            continue
        made = sum(tensor.bytes for tensor in op.outputs)
        # Rows are looked up in a table; a matrix is read whole.
        most = made if op.unit == "elementwise" else math.inf
        read = sum(min(tensor.bytes, most) if tensor.storage.leaf else tensor.bytes for tensor in op.inputs)
        dtype = op.numbers or op.outputs[0].dtype
        found.append(Kernel(op.unit, dtype, op.flops, read + made - op.unread, widened=op.widened))
        if op.scratch:
            found.append(elementwise(2 * op.scratch, op.rounds))
    return found


def _backward(op: Op, reached: set[Tensor]) -> list[Kernel]:
    """Kernels of one operation's gradients; `reached` gets the tensors that have one now."""
    if op.early:
        # Gradients that were made forward are scaled where they lie.
        reached.update(tensor for tensor in op.inputs if tensor.grad)
        return [elementwise(2 * tensor.bytes) for tensor in op.saved]
    found = []
    arrived = sum(tensor.bytes for tensor in op.outputs)
    saved = sum(tensor.bytes for tensor in op.saved if not tensor.storage.leaf and tensor not in op.outputs)
    for place, tensor in enumerate(dict.fromkeys(op.inputs)):
        if not tensor.grad:
            continue
        if op.unit == "attention":
            if place == 0:
                moved = 2 * (sum(each.bytes for each in op.inputs) + arrived)
                found.append(Kernel(op.unit, tensor.dtype, _ATTENTION_BACKWARD * op.flops, moved))
        elif op.unit != "elementwise" and place < 2:
            other = op.inputs[1 - place].bytes
            found.append(Kernel(op.unit, tensor.dtype, op.flops, arrived + other + tensor.bytes))
        elif not (op.passes and tensor.dtype == op.outputs[0].dtype):
            found.append(elementwise(arrived + min(saved, arrived + tensor.bytes) + tensor.bytes))
            if tensor.storage.leaf and tensor.elements < op.outputs[0].elements and op.unit == "elementwise":
                # The gradient of what was repeated is summed after it was made at full size.
                found.append(elementwise(2 * arrived))
        if tensor in reached:
            found.append(elementwise(3 * tensor.bytes))
        reached.add(tensor)
    if op.scratch_back and op.unit != "attention":
        found.append(elementwise(2 * op.scratch_back))
    return found


def _is_view(op: Op) -> bool:
    """What gradients pass through is a sum, wherever it lies."""
    if op.passes:
        return False
    return all(tensor.storage is op.inputs[0].storage for tensor in op.outputs) if op.inputs else False
