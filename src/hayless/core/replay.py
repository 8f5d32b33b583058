"""How much memory a tape needs: its operations followed forward, and backward as autograd would run them.

A tensor lives from the operation that makes it to the last one that reads it, or to its backward step where it is
saved. Gradients live from where they are made to where they are used; those of weights stay, or go at once where
weights are moved in the backward pass. A checkpointed block keeps what enters it and is run again before its backward
pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hayless.core.tape import Op, Segment, Storage, Tape, Tensor


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in use at one moment, weights and optimizer left out. `loss`: logits, the loss and their gradients."""

    gradients: int = 0
    activations: int = 0
    loss: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.gradients + self.activations + self.loss + self.temporary


@dataclass(frozen=True, slots=True)
class Replay:
    """What a run holds: at the peak forward, between forward and backward (what autograd saved), at the peak backward,
    and at that of a second backward pass.

    Where nothing trains, `saved` and `backward` hold nothing; where one backward pass is enough, `second` does not.
    """

    forward: Held
    saved: Held
    backward: Held
    second: Held = Held()


Moving = Callable[[int], int]
"""Bytes that exist while a weight of so many elements is moved, its gradient left out."""


def replay(tape: Tape, *, gradients: int = 0, moving: Moving | None = None, twice: bool = False) -> Replay:
    """Follow a tape forward and, where it trains, backward. `gradients`: bytes kept from earlier micro-batches.

    With `moving` each weight is moved as soon as its gradient is there, which then goes; `twice`, in a second pass over
    the same graph, after one that only measures gradients.
    """
    memory = _Memory(gradients, tape)
    last = _last_uses(tape.segments)
    before = 1
    for segment in tape.segments:
        if segment.times > 1:
            memory.mark()
        if segment.checkpointed:
            memory.keep(_entering(segment))
            memory.keep(_kept(segment))
            memory.offload(segment)
        memory.forward(segment.ops, last, saving=not segment.checkpointed)
        if before > 1:
            # With what lies between two blocks.
            memory.again(before - 1)
        before = segment.times
    forward, saved = memory.peak, memory.now()
    if tape.result is None or not tape.result.grad:
        return Replay(forward, Held(), Held())
    first = Held()
    if twice:
        memory.moving = lambda elements: 0
        first = _backward(tape, tape.result, memory, last=False)
    memory.moving = moving
    final = _backward(tape, tape.result, memory, last=True)
    return Replay(forward, saved, *((first, final) if twice else (final,)))


def _backward(tape: Tape, loss: Tensor, memory: _Memory, *, last: bool) -> Held:
    """The peak of a backward pass from `loss`; if it is not the `last`, what the forward pass saved stays."""
    memory.restart()
    memory.begin_backward(loss, tape.segments)
    for place in reversed(range(len(tape.segments))):
        segment = tape.segments[place]
        if place and tape.segments[place - 1].times > 1:
            memory.mark()
        again = segment.checkpointed and memory.reaches(segment.ops)
        if again:
            memory.recall(segment)
            memory.forward(segment.ops, _last_uses([segment]), saving=True)
            memory.release(_kept(segment))
        for op in reversed(segment.ops):
            memory.backward(op, release=again or (last and not segment.checkpointed))
        if again or last:
            memory.drop(segment)
        if segment.checkpointed and last:
            memory.release(_entering(segment))
        if segment.times > 1:
            memory.again(segment.times - 1)
    return memory.peak


class _Memory:
    """What is in use now, by cause, and the highest point so far."""

    def __init__(self, gradients: int, tape: Tape) -> None:
        self._size = tape.held_bytes
        self._in_frames: set[Storage] = set()
        self._saved: Counter[Storage] = Counter()
        self._gradient_of: dict[Tensor, Storage] = {}
        self._owners: Counter[Storage] = Counter()
        self._awaited: Counter[Storage] = Counter()
        self._arrived: list[tuple[Tensor, Storage]] = []
        self.moving: Moving | None = None
        self._can_grow: set[Storage] = set()
        self._before = _before(tape.segments)
        self._here: list[Segment] = []
        self._accumulates = gradients > 0
        self._gradients, self._activations, self._loss, self._temporary = gradients, 0, 0, 0
        self.peak = self._marked = self.now()

    def now(self) -> Held:
        """What is in use at this moment."""
        return Held(self._gradients, self._activations, self._loss, self._temporary)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now()

    def mark(self) -> None:
        """What follows happens several times."""
        self._marked = self.now()

    def again(self, times: int) -> None:
        """What happened since the mark happens so many times more. The highest points of those lie between that of the
        first and that of the last block, which are followed themselves."""
        then, now = self._marked, self.now()
        self._gradients += times * (now.gradients - then.gradients)
        self._activations += times * (now.activations - then.activations)
        self._loss += times * (now.loss - then.loss)
        self._temporary += times * (now.temporary - then.temporary)

    def keep(self, storages: Iterable[Storage]) -> None:
        """Save each for the backward pass."""
        for storage in storages:
            before = self._state(storage)
            self._saved[storage] += 1
            self._count(storage, before)

    def release(self, storages: Iterable[Storage]) -> None:
        """Undo one `keep` of each."""
        for storage in storages:
            before = self._state(storage)
            self._saved[storage] -= 1
            self._count(storage, before)

    def offload(self, segment: Segment) -> None:
        """What entered the offloaded segment before this one has reached the host; this one's is on its way there."""
        if segment.offloaded:
            if segment in self._before:
                self._drop(self._before[segment])
            self._bring(segment)

    def recall(self, segment: Segment) -> None:
        """What enters an offloaded segment is here, and what enters the one before it is on its way back."""
        if segment.offloaded:
            self._bring(segment)
            if segment in self._before:
                self._bring(self._before[segment])

    def drop(self, segment: Segment) -> None:
        """What entered an offloaded segment is not needed here any more."""
        if segment.offloaded:
            self._drop(segment)

    def forward(self, ops: Sequence[Op], last: dict[Storage, Op], *, saving: bool) -> None:
        """Run `ops`; `last` is the operation after which nobody reads a storage."""
        for op in ops:
            for tensor in (*op.outputs, *op.saved):
                self._enter(tensor.storage)
            self._look(op.scratch)
            if saving:
                self.keep(tensor.storage for tensor in op.saved)
            for tensor in (*op.inputs, *op.outputs, *op.saved):
                if last[tensor.storage] is op:
                    self._leave(tensor.storage)

    def begin_backward(self, loss: Tensor, segments: Sequence[Segment]) -> None:
        """The gradient of the loss, which is 1, exists."""
        self._awaited = _uses(segments)
        self._give(loss, self._buffer(loss))

    def reaches(self, ops: Sequence[Op]) -> bool:
        """Whether gradients have come to what `ops` made."""
        return any(tensor in self._gradient_of for op in ops for tensor in op.outputs)

    def backward(self, op: Op, *, release: bool) -> None:
        """Run one operation's backward step: gradients of its inputs are made, those of its outputs go."""
        arrived = [self._gradient_of.pop(tensor) for tensor in op.outputs if tensor in self._gradient_of]
        if release and op.early:
            # What was saved is the gradients, and counts as such from here on.
            self.release(tensor.storage for tensor in op.saved)
        if arrived:
            passing: list[Storage] = []
            for tensor in dict.fromkeys(op.inputs):
                if tensor.grad:
                    self._make_gradient(tensor, op, arrived[0], passing)
            self._look(op.scratch_back)
            for buffer in (*passing, *arrived):
                self._disown(buffer)
            self._move()
        if release and not op.early:
            self.release(tensor.storage for tensor in op.saved)

    def _make_gradient(self, tensor: Tensor, op: Op, arrived: Storage, passing: list[Storage]) -> None:
        """The gradient of one input; `passing` gets buffers that go when the operation is done."""
        if tensor.storage.leaf:
            self._add_to_weight(tensor, passing, in_place=op.early or len(op.inputs) == 1)
            return
        shared = op.passes and tensor.dtype == op.outputs[0].dtype
        buffer = arrived if shared else self._buffer(tensor)
        there = self._gradient_of.get(tensor)
        if there is None:
            self._give(tensor, buffer)
            return
        passing.append(self._own(buffer))
        if self._owners[there] > 1:
            # Autograd adds in place only to a gradient that nobody else looks at.
            passing.append(there)
            self._give(tensor, self._buffer(tensor))

    def _add_to_weight(self, weight: Tensor, passing: list[Storage], *, in_place: bool) -> None:
        """A gradient of a weight; those of one that is used twice are summed before the sum is kept.

        `in_place`: others can be added to this one in its memory. Not so to what matrix products give, a view.
        """
        there = self._gradient_of.pop(weight, None)
        made = self._own(self._buffer(weight))
        if there is not None:
            passing.append(made)
            made = there
            if there not in self._can_grow:
                passing.append(there)
                made = self._own(self._buffer(weight))
        if there is not None or in_place:
            self._can_grow.add(made)
        self._awaited[weight.storage] -= 1
        if self._awaited[weight.storage] > 0:
            self._gradient_of[weight] = made
        elif self._accumulates:
            passing.append(made)
        else:
            self._disown(made)
            self._gradients += weight.bytes
            self._temporary += made.bytes - weight.bytes
            if self.moving:
                self._arrived.append((weight, made))

    def _move(self) -> None:
        """Move the weights whose gradients are there, and free these."""
        for weight, made in self._arrived:
            assert self.moving
            self._look(self.moving(weight.elements))
            self._gradients -= weight.bytes
            self._temporary -= made.bytes - weight.bytes
        self._arrived = []

    def _bring(self, segment: Segment) -> None:
        if segment not in self._here:
            assert segment.offloaded
            self._here.append(segment)
            self.keep([segment.offloaded.storage])

    def _drop(self, segment: Segment) -> None:
        if segment in self._here:
            assert segment.offloaded
            self._here.remove(segment)
            self.release([segment.offloaded.storage])

    def _buffer(self, tensor: Tensor) -> Storage:
        """Memory for a gradient of `tensor`."""
        return Storage(self._size(tensor.bytes), loss=tensor.storage.loss)

    def _give(self, tensor: Tensor, buffer: Storage) -> None:
        self._gradient_of[tensor] = self._own(buffer)

    def _own(self, buffer: Storage) -> Storage:
        self._owners[buffer] += 1
        if self._owners[buffer] == 1:
            self._add(buffer, buffer.bytes, temporary=True)
        return buffer

    def _disown(self, buffer: Storage) -> None:
        self._owners[buffer] -= 1
        if not self._owners[buffer]:
            self._add(buffer, -buffer.bytes, temporary=True)

    def _enter(self, storage: Storage) -> None:
        before = self._state(storage)
        self._in_frames.add(storage)
        self._count(storage, before)

    def _leave(self, storage: Storage) -> None:
        before = self._state(storage)
        self._in_frames.discard(storage)
        self._count(storage, before)

    def _state(self, storage: Storage) -> str:
        if self._saved[storage]:
            return "saved"
        return "temporary" if storage in self._in_frames else ""

    def _count(self, storage: Storage, before: str) -> None:
        """Move a storage's bytes from one cause to another after its state changed."""
        after = self._state(storage)
        if before != after:
            if before:
                self._add(storage, -storage.bytes, temporary=before == "temporary")
            if after:
                self._add(storage, storage.bytes, temporary=after == "temporary")

    def _add(self, storage: Storage, size: int, *, temporary: bool) -> None:
        if storage.loss:
            self._loss += size
        elif temporary:
            self._temporary += size
        else:
            self._activations += size

    def _look(self, scratch: int) -> None:
        """Note the present as the peak if it is."""
        total = self._gradients + self._activations + self._loss + self._temporary + scratch
        if total > self.peak.total:
            self.peak = Held(self._gradients, self._activations, self._loss, self._temporary + scratch)


def _last_uses(segments: Iterable[Segment]) -> dict[Storage, Op]:
    """Each storage's last operation."""
    return {
        tensor.storage: op
        for segment in segments
        for op in segment.ops
        for tensor in (*op.inputs, *op.outputs, *op.saved)
    }


def _uses(segments: Iterable[Segment]) -> Counter[Storage]:
    """How many gradients each weight gets."""
    found: Counter[Storage] = Counter()
    for segment in segments:
        for op in segment.ops:
            if any(tensor.grad for tensor in op.outputs):
                for storage in {tensor.storage for tensor in op.inputs if tensor.grad and tensor.storage.leaf}:
                    found[storage] += 1
    return found


def _kept(segment: Segment) -> list[Storage]:
    """What a checkpointed segment keeps of what it made: results, and what attention saves beside them."""
    return [
        tensor.storage
        for op in segment.ops
        if segment.kept(op)
        for tensor in dict.fromkeys((*op.outputs, *op.saved))
        if tensor not in op.inputs
    ]


def _before(segments: Iterable[Segment]) -> dict[Segment, Segment]:
    """Each offloaded segment's predecessor."""
    chain = [segment for segment in segments if segment.offloaded]
    return {chain[place]: chain[place - 1] for place in range(1, len(chain))}


def _entering(segment: Segment) -> list[Storage]:
    """What a segment reads and did not make, weights left out, and what is offloaded."""
    made = {tensor.storage for op in segment.ops for tensor in (*op.outputs, *op.saved) if tensor not in op.inputs}
    read = dict.fromkeys(tensor.storage for op in segment.ops for tensor in op.inputs)
    offloaded = segment.offloaded.storage if segment.offloaded else None
    return [storage for storage in read if storage not in made and not storage.leaf and storage is not offloaded]
