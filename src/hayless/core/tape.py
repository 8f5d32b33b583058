"""A model's run as a list of operations on tensors that have sizes and no values.

Each operation notes what PyTorch's autograd keeps for the backward pass, by the rules in PyTorch's derivatives.yaml: a
product keeps a factor only where the other one needs a gradient, a matrix product keeps its input only where the weight
is trained, and so on. Frozen weights, adapters, precisions and checkpointing then need no formulas of their own.
`hayless.core.replay` follows the tape and says how much memory is in use when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from hayless.core.allocator import allocated_bytes
from hayless.core.dtypes import item_bytes

Keeps = Literal["input", "output", "nothing"]
Kept = Literal["nothing", "attention", "products"]
"""What a checkpointed block keeps beside what enters it: the results of fused attention, or also those of products with
weights."""
Unit = Literal["elementwise", "matrix", "uneven", "attention", "stream"]
"""What computes an operation: nothing but elementwise units, those for matrices, those for matrices with a width that 8
does not divide (tensor cores cannot read such rows as they are stored), fused attention, or a kernel that does no more
than stream a matrix past one token and begins while the one before it ends (`hayless.kernels.linear`)."""


class Storage:
    """Memory of one or several tensors. `leaf`: a weight, which is not counted; `loss`: made by head or loss."""

    __slots__ = ("bytes", "leaf", "loss")

    def __init__(self, size: int, *, leaf: bool = False, loss: bool = False) -> None:
        self.bytes, self.leaf, self.loss = size, leaf, loss


class Tensor:
    """A tensor without values; `grad` says whether gradients flow to it."""

    __slots__ = ("dtype", "elements", "grad", "storage")

    def __init__(self, elements: int, dtype: str, grad: bool, storage: Storage) -> None:
        self.elements, self.dtype, self.grad, self.storage = elements, dtype, grad, storage

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * item_bytes(self.dtype)


@dataclass(slots=True, eq=False)
class Op:
    """One operation.

    `passes`: gradients go through in the same memory (additions, views). `scratch` and `scratch_back` are bytes that
    exist only while it runs forward or backward. `flops` are those of its products forward, which `unit` computes;
    `unread` are bytes of its inputs that it has no need of; `numbers` is the dtype that is multiplied where it is not
    that of the result, and `widened` the bytes of W in a wider one. `early`: its gradients are made forward, and are
    what it saves; `rounds`: how often its scratch is filled anew. `weighs`: a product with a weight. An operation
    without outputs only keeps its inputs alive until then.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    saved: tuple[Tensor, ...] = ()
    passes: bool = False
    scratch: int = 0
    scratch_back: int = 0
    unit: Unit = "elementwise"
    flops: float = 0.0
    unread: int = 0
    numbers: str = ""
    widened: int = 0
    early: bool = False
    rounds: int = 1
    weighs: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """What a product with a packed W takes: bytes beside its result forward and backward (W unpacked, say), bytes less
    to read than W has, and the dtype of the numbers that are multiplied, where it is not that of the result."""

    scratch: int = 0
    scratch_back: int = 0
    unread: int = 0
    numbers: str = ""


@dataclass(slots=True, eq=False)
class Segment:
    """Operations of one block (or of what lies outside the blocks), in order.

    A checkpointed one is run again backward, except for what it `keeps` the results of. What enters it may lie
    `offloaded` in the host's memory meanwhile. It stands for `times` equal ones, one behind the other; two more are
    recorded before it and two after it.
    """

    checkpointed: bool = False
    keeps: Kept = "nothing"
    offloaded: Tensor | None = None
    times: int = 1
    ops: list[Op] = field(default_factory=list)

    def kept(self, op: Op) -> bool:
        """Whether a checkpointed segment has the results of `op` still when it is run again."""
        if self.keeps == "nothing":
            return False
        return op.unit == "attention" or (op.weighs and self.keeps == "products")


class Tape:
    """Records operations. `arithmetic` is autocast's dtype; `training` False records a run without gradients.

    `result` is the loss, from which gradients start.
    """

    def __init__(self, *, training: bool, arithmetic: str | None = None, device: str = "cuda") -> None:
        self.training, self.arithmetic, self.device = training, arithmetic, device
        self.segments: list[Segment] = [Segment()]
        self.result: Tensor | None = None
        self._casts: dict[Storage, Tensor] = {}
        self._loss = False

    @contextmanager
    def block(
        self, *, checkpointed: bool, keeps: Kept = "nothing", offloaded: Tensor | None = None, times: int = 1
    ) -> Iterator[None]:
        """What is recorded inside is one block, or one that stands for `times`."""
        self.segments.append(Segment(checkpointed, keeps, offloaded, times))
        yield
        self.segments.append(Segment())

    @contextmanager
    def loss(self) -> Iterator[None]:
        """What is made inside counts as logits and loss."""
        self._loss = True
        yield
        self._loss = False

    @contextmanager
    def unfused(self) -> Iterator[None]:
        """Where autocast does not reach: inside an operation of PyTorch's own, and in those that it does not know."""
        arithmetic, self.arithmetic = self.arithmetic, None
        yield
        self.arithmetic = arithmetic

    def leaf(self, elements: int, dtype: str, trainable: bool) -> Tensor:
        """A weight."""
        return Tensor(elements, dtype, trainable and self.training, Storage(0, leaf=True))

    def constant(self, elements: int, dtype: str) -> Tensor:
        """A tensor that gradients do not flow to: ids, masks, rotations."""
        return self._record((), elements, dtype, grad=False)

    def hold(self, *tensors: Tensor) -> None:
        """A caller's variable keeps these alive until here."""
        self.segments[-1].ops.append(Op(tensors, ()))

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """`x` in another dtype: new memory; `x` itself where it has that dtype already."""
        return x if x.dtype == dtype else self._record((x,), x.elements, dtype)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b; saves nothing."""
        return self._record((a, b), max(a.elements, b.elements), wider(a, b), passes=True)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """a · b; each is saved where the other needs a gradient."""
        saved = [kept for kept, other in ((a, b), (b, a)) if other.grad]
        return self._record((a, b), max(a.elements, b.elements), wider(a, b), saved)

    def scale(self, x: Tensor) -> Tensor:
        """`x` times a number, negated or shifted: new memory, nothing saved."""
        return self._record((x,), x.elements, x.dtype)

    def unary(self, x: Tensor, keeps: Keeps, elements: int | None = None) -> Tensor:
        """An elementwise function or reduction whose gradient needs its input, its output or neither."""
        saved = (x,) if keeps == "input" else ()
        return self._record((x,), x.elements if elements is None else elements, x.dtype, saved, keeps=keeps)

    def parts(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """`x` split into views; their gradients are put together in new memory."""
        views = tuple(Tensor(size, x.dtype, x.grad, x.storage) for size in sizes)
        self.segments[-1].ops.append(Op((x,), views))
        return views

    def join(self, *tensors: Tensor) -> Tensor:
        """Concatenation: new memory, nothing saved; gradients are views."""
        return self._record(tensors, sum(tensor.elements for tensor in tensors), tensors[0].dtype, passes=True)

    def copy(self, x: Tensor, elements: int | None = None) -> Tensor:
        """A contiguous (or repeated, expanded, gathered) copy; nothing saved."""
        return self._record((x,), x.elements if elements is None else elements, x.dtype)

    def indexed(self, x: Tensor, elements: int, index: Tensor) -> Tensor:
        """x[index]: the index is saved."""
        return self._record((x, index), elements, x.dtype, (index,))

    def matmul(self, a: Tensor, b: Tensor, elements: int, inner: int) -> Tensor:
        """A batched product of activations, over sums of `inner`: each is saved where the other needs a gradient."""
        a, b = self._arithmetic(a), self._arithmetic(b)
        saved = [kept for kept, other in ((a, b), (b, a)) if other.grad]
        return self._record((a, b), elements, a.dtype, saved, unit="matrix", flops=2.0 * elements * inner)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: int,
        shape: tuple[int, int],
        packed: Packed | None = None,
        unread: int = 0,
    ) -> Tensor:
        """x·Wᵀ + b for a W of `shape` (out, in): `x` is saved where W is trained.

        `packed`: what a packed W changes; `unread`: bytes of a stack of several that no token of this run needs.
        """
        x, weight = self._arithmetic(x), self._arithmetic(weight)
        inputs = [x, weight] if bias is None else [x, weight, self._arithmetic(bias)]
        saved = [kept for kept, other in ((x, weight), (weight, x)) if other.grad]
        packed = packed or Packed()
        unit: Unit = "uneven" if any(width % 8 for width in shape) else "matrix"
        flops = 2.0 * tokens * shape[0] * shape[1]
        elements = tokens * shape[0]
        back = packed.scratch_back if x.grad else 0
        out = self._record(
            inputs, elements, x.dtype, saved, scratch=packed.scratch, scratch_back=back, unit=unit, flops=flops
        )
        op = self.segments[-1].ops[-1]
        op.unread, op.numbers, op.weighs = unread + packed.unread, packed.numbers, True
        op.widened = packed.scratch_back if packed.numbers else 0
        return out

    def low_rank(
        self,
        out: Tensor,
        x: Tensor,
        thin: Tensor,
        wide: Tensor,
        widths: tuple[int, int, int],
        *,
        in_place: bool,
        joined: bool,
    ) -> Tensor:
        """out + s·B(Ax) for A (r, in) and B (out, r), `widths` in, r, out: x is saved as it came, Ax never.

        The sum is made in the memory of `out`, or else in its own; on GPUs by the second product, on CPUs what is added
        exists for a moment. `joined`: its gradient of x is added to that of `out`'s product where that lies.
        """
        width, rank, wider_width = widths
        tokens = x.elements // width
        size = item_bytes(thin.dtype)
        scratch = self.held_bytes(tokens * rank * size)
        if x.dtype != thin.dtype:
            scratch += self.held_bytes(x.elements * size)
        back = scratch + self.held_bytes(tokens * rank * size)
        entering = Tensor(x.elements, x.dtype, False, x.storage) if joined else x
        added = self._record(
            (entering, thin, wide),
            out.elements,
            thin.dtype,
            (x, thin, wide),
            scratch=scratch,
            scratch_back=back,
            unit="uneven" if any(each % 8 for each in widths) else "matrix",
            flops=2.0 * tokens * rank * (width + wider_width),
        )
        if self.device == "cuda":
            added.storage.bytes = 0
        if not in_place:
            return self.add(out, added)
        summed = Tensor(out.elements, out.dtype, out.grad or added.grad, out.storage)
        self.segments[-1].ops.append(Op((out, added), (summed,), passes=True))
        return summed

    def embedding(self, ids: Tensor, table: Tensor, elements: int) -> Tensor:
        """Rows of a table; the ids are saved."""
        return self._record((ids, table), elements, table.dtype, (ids,))

    def choose(self, a: Tensor, b: Tensor, rows: int) -> Tensor:
        """Rows of a or of b, by a mask of one byte for each of `rows`, which is saved."""
        return self._record((a, b), a.elements, wider(a, b), (self._new(rows, "bool", False),))

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` with `part` written into it, in its memory; nothing saved, but its gradient is copied."""
        out = Tensor(whole.elements, whole.dtype, whole.grad or part.grad, whole.storage)
        self.segments[-1].ops.append(Op((whole, part), (out,)))
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, tokens: int) -> Tensor:
        """torch's own layer norm: saves its input and each token's mean and deviation."""
        if self.arithmetic and self.device == "cuda":
            x = self.cast(x, "float32")
        stats = self._new(2 * tokens, "float32", False)
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return self._record(inputs, x.elements, x.dtype, (x, stats))

    def rms_norm(self, x: Tensor, weight: Tensor, rows: int, dtype: str) -> Tensor:
        """RMSNorm of `rows` rows in one kernel: saves its input and a float32 a row."""
        # 512 programs at most share the rows backward, and have a part of the gain's gradient each.
        parts, inverse = 4 * weight.elements * min(rows, 512), self._new(rows, "float32", False)
        return self._record((x, weight), x.elements, dtype, (x, inverse), scratch_back=parts)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """A rotation in one kernel: saves no more than by how much."""
        return self._record((x, cos, sin), x.elements, wider(x, cos), (cos, sin))

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) · up in one kernel: saves both."""
        return self._record((gate, up), up.elements, up.dtype, (gate, up))

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, rows: int, seen: float, masks: Sequence[Tensor] = ()
    ) -> Tensor:
        """Fused attention: saves q, k, v, its output and a float32 for each of `rows` (tokens · heads).

        `seen`: keys that a query sees on average.
        """
        q, k, v = (self._arithmetic(tensor) for tensor in (q, k, v))
        back = 0
        if self.device == "cuda":
            # FlashAttention-2 sums dq in float32, and gives each query head a dk and a dv of its own.
            back = 4 * q.elements + (2 * q.bytes if k.elements < q.elements else 0) + 4 * rows
        logsumexp = self._new(rows, "float32", False)
        inputs = (q, k, v, *masks)
        saved, flops = (*inputs, logsumexp), 4.0 * q.elements * seen
        return self._record(
            inputs, q.elements, q.dtype, saved, keeps="output", scratch_back=back, unit="attention", flops=flops
        )

    def dropout(self, x: Tensor, p: float) -> Tensor:
        """Dropout: a mask is saved, of one byte an element on GPUs and of x's dtype on CPUs."""
        if not (p and self.training):
            return x
        mask = self._new(x.elements, "bool" if self.device == "cuda" else x.dtype, False)
        return self._record((x,), x.elements, x.dtype, (mask,))

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss in float32: saves the log-probabilities; their gradient exists twice for a moment."""
        logits = self.cast(logits, "float32")
        logp = self._record((logits,), logits.elements, "float32", keeps="output")
        return self._record((logp, targets), 1, "float32", (targets,))

    def linear_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: tuple[int, int], chunk: int
    ) -> Tensor:
        """The loss of a head of `shape` (out, in), `chunk` tokens at a time: gradients are made forward and saved."""
        entries, width = shape
        tokens, dtype = targets.elements, self.arithmetic or weight.dtype
        rows = min(chunk, tokens)
        inputs = (x, weight) if bias is None else (x, weight, bias)
        saved = [self._new(tensor.elements, tensor.dtype, False) for tensor in inputs if tensor.grad]
        # A chunk's logits become their gradient where they are; plain PyTorch has them in float32 beside, three times.
        held = [rows * entries * item_bytes(dtype)] + [4 * rows * entries] * (3 if self.device == "cpu" else 0)
        held += [tensor.elements * item_bytes(dtype) for tensor in inputs[1:] if tensor.dtype != dtype]
        out = self._record(
            (*inputs, targets),
            1,
            "float32",
            saved,
            scratch=sum(self.held_bytes(size) for size in held),
            unit="uneven" if entries % 8 or width % 8 else "matrix",
            flops=2.0 * tokens * entries * width * (1 + x.grad + weight.grad),
        )
        op = self.segments[-1].ops[-1]
        op.numbers, op.early, op.rounds = dtype, out.grad, -(-tokens // rows)
        return out

    def _arithmetic(self, x: Tensor) -> Tensor:
        """`x` as autocast gives it to matrix products; a weight is cast once a forward pass."""
        if self.arithmetic is None or x.dtype == self.arithmetic:
            return x
        if x.storage in self._casts:
            return self._casts[x.storage]
        of_loss, self._loss = self._loss, x.storage.loss
        found = self.cast(x, self.arithmetic)
        self._loss = of_loss
        if x.storage.leaf and x.grad:
            self._casts[x.storage] = found
        return found

    def held_bytes(self, size: int) -> int:
        """Bytes of memory that a tensor of `size` bytes takes on this tape's device."""
        return allocated_bytes(size) if self.device == "cuda" else size

    def _new(self, elements: int, dtype: str, grad: bool) -> Tensor:
        return Tensor(elements, dtype, grad, Storage(self.held_bytes(elements * item_bytes(dtype)), loss=self._loss))

    def _record(
        self,
        inputs: Sequence[Tensor],
        elements: int,
        dtype: str,
        saved: Sequence[Tensor] = (),
        *,
        keeps: Keeps = "input",
        grad: bool | None = None,
        passes: bool = False,
        scratch: int = 0,
        scratch_back: int = 0,
        unit: Unit = "elementwise",
        flops: float = 0.0,
    ) -> Tensor:
        """Add an operation; `saved` counts where a gradient flows. `keeps="output"` saves the output as well."""
        if grad is None:
            grad = self.training and any(tensor.grad for tensor in inputs)
        out = self._new(elements, dtype, grad)
        kept: tuple[Tensor, ...] = ()
        if grad and keeps != "nothing":
            kept = (*saved, out) if keeps == "output" else tuple(saved)
        self.segments[-1].ops.append(Op(tuple(inputs), (out,), kept, passes, scratch, scratch_back, unit, flops))
        return out


def wider(a: Tensor, b: Tensor) -> str:
    """The dtype of a and b together."""
    return a.dtype if item_bytes(a.dtype) >= item_bytes(b.dtype) else b.dtype
