"""What a model costs: bytes by cause at each phase's peak, and the work of each phase, from its ledger.

Training follows ZeRO's way of counting (Rajbhandari et al., 2020, arXiv:1910.02054, section 3.1): a trained parameter
has a weight, a gradient, optimizer state and, in `master`, a float32 copy. Activations come from a recorded run of the
model (`hayless.core.activations`). Not counted: the CUDA context, what an allocator keeps beyond what is in use, the
model's buffers (a few numbers for rotary positions), and files being read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from hayless.core.activations import VERIFIED, record
from hayless.core.allocator import allocated_bytes, workspace_bytes
from hayless.core.attention import AttentionChoice, attention_for
from hayless.core.cache_form import CacheForm
from hayless.core.dims import ModelDims
from hayless.core.dtypes import item_bytes
from hayless.core.errors import RequestError, bad_value, unknown
from hayless.core.forward import VIRTUAL, RunShape, unpacked_bytes
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.moving import moving_bytes, moving_work, refuse_accumulation, stepping_bytes
from hayless.core.replay import Held, replay
from hayless.core.tape import Kept, Tape
from hayless.core.work import Work, backward_work, forward_work

PRECISIONS: Mapping[str, tuple[str, str | None]] = {
    "fp32": ("float32", None),
    "autocast": ("float32", "bfloat16"),
    "master": ("bfloat16", None),
    "bf16": ("bfloat16", None),
    "fp16": ("float32", "float16"),
}
"""Precision of training → dtype of trained weights and gradients, autocast's dtype."""

StateBytes = Callable[[tuple[int, ...], str], int]
"""Bytes an optimizer remembers for one parameter of this shape and dtype (in `master`: that of the float32 copy)."""


def no_state(shape: tuple[int, ...], dtype: str) -> int:
    """The state of an optimizer that remembers nothing."""
    return 0


Launches = Callable[[tuple[int, ...]], int]
"""Kernels an optimizer launches to move one parameter of this shape."""


def together(shape: tuple[int, ...]) -> int:
    """Those of an optimizer that moves many parameters by each launch."""
    return 0


def alone(shape: tuple[int, ...]) -> int:
    """Those of an optimizer that moves each parameter by one kernel."""
    return 1


@dataclass(frozen=True, slots=True)
class TrainShape:
    """How a model is trained, as far as cost depends on it.

    `batch` rows of `sequence` tokens are computed at once, `accumulation` times an update. `state_bytes` is the
    optimizer's, `scratch_bytes` what exists while it moves one parameter, by `move_launches` kernels that read or write
    weight and gradient `move_passes` times in all. `fused`: each weight is moved in the backward pass, as soon as its
    gradient is there. `clips`: gradients are clipped by their norm. `checkpoint_every` n computes
    every n-th block again in the backward pass, of those only the first `checkpoint_blocks` if it is not 0; 0 none;
    `checkpoint_keeps` is what those keep; `offload`: what enters them lies in the host's memory meanwhile.
    `loss_chunk`: tokens whose logits exist at once; 0 all of them. `fused_kernels`: norms, rotations and gates are one
    kernel each; `float8`: the linear layers of blocks multiply 8-bit floats.
    `masked`: rows are packed with several documents, which `attention` keeps apart as `hayless.core.attention` says.
    `exit_every` n: beside the last layer's, the states of every n-th one from the second on have a loss; 0 none.
    `exits`: the states behind so many layers have one, instead.
    """

    batch: int
    sequence: int
    accumulation: int = 1
    precision: str = "fp32"
    state_bytes: StateBytes = no_state
    scratch_bytes: StateBytes = no_state
    move_launches: Launches = together
    move_passes: int = 3
    fused: bool = False
    clips: bool = True
    checkpoint_every: int = 0
    checkpoint_blocks: int = 0
    checkpoint_keeps: Kept = "nothing"
    offload: bool = False
    loss_chunk: int = 0
    fused_kernels: bool = False
    float8: bool = False
    attention: AttentionChoice = "auto"
    masked: bool = False
    exit_every: int = 0
    exits: tuple[int, ...] = ()
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        at_least(1, batch=self.batch, sequence=self.sequence, accumulation=self.accumulation)
        at_least(0, checkpoint_every=self.checkpoint_every, checkpoint_blocks=self.checkpoint_blocks)
        at_least(0, exit_every=self.exit_every, loss_chunk=self.loss_chunk)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.twice and self.checkpoint_keeps != "nothing":
            raise RequestError(
                f"checkpointing that keeps {self.checkpoint_keeps} serves one backward pass; this update takes two.",
                hint="Set clip_norm: null, or keep: nothing.",
            )
        if self.fused:
            refuse_accumulation(self.accumulation)

    @property
    def twice(self) -> bool:
        """Whether an update takes two backward passes: what must know all gradients before a fused update begins."""
        return self.fused and (self.clips or self.precision == "fp16")

    def dtype(self, row: Row) -> str:
        """The dtype a row's weights have while this trains: a frozen one is never made larger."""
        wanted = PRECISIONS[self.precision][0]
        if row.trainable or item_bytes(row.dtype) > item_bytes(wanted):
            return wanted
        return row.dtype

    @property
    def moved_dtype(self) -> str:
        """The dtype of what the optimizer moves."""
        return "float32" if self.precision == "master" else PRECISIONS[self.precision][0]


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """How a model is decoded, as far as memory depends on it.

    `batch` rows grow to `context` tokens. A method that drafts sets the rest: `drafted` tokens a row at most are
    checked in one pass; `draft` names the model that drafts them, if one does that is there for nothing else; `tried`:
    decoding without drafts is tried before. One that holds keys and values in another form sets `cache`.
    """

    batch: int
    context: int
    drafted: int = 0
    draft: str | None = None
    tried: bool = False
    cache: CacheForm | None = None
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes in use at one moment, by cause. `temporary`: what exists only while an operation runs, gradients of
    activations, and on CUDA workspaces of libraries and what memory has beyond its tensors; `loss`: logits, the loss
    and their gradients."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    master: int = 0
    activations: int = 0
    loss: int = 0
    kv_cache: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_cause().values())

    def by_cause(self) -> dict[str, int]:
        """Cause → bytes."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def __add__(self, other: Bytes) -> Bytes:
        mine, theirs = self.by_cause(), other.by_cause()
        return Bytes(**{cause: mine[cause] + theirs[cause] for cause in mine})


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes at the peak of each phase, and the work of each phase.

    Training has the phases `forward`, `backward` and `step` (its work is that of a whole update, all micro-batches);
    decoding has `prefill` and `decode` (one token for each row). `tokens` is what that work yields: trained tokens of
    an update, or tokens of one decoding step. `notes` say what was assumed.
    """

    phases: Mapping[str, Bytes]
    work: Mapping[str, Work]
    tokens: int
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> Bytes:
        """Bytes of the phase that needs most."""
        return max(self.phases.values(), key=lambda held: held.total)

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name].total)

    def __add__(self, other: Cost) -> Cost:
        """Two models held and run together on the same tokens, such as a teacher and its student."""
        if self.phases.keys() != other.phases.keys() or self.tokens != other.tokens:
            raise RequestError("Only costs of the same phases and tokens can be added.")
        return Cost(
            {name: held + other.phases[name] for name, held in self.phases.items()},
            {name: work + other.work[name] for name, work in self.work.items()},
            self.tokens,
            tuple(dict.fromkeys(self.notes + other.notes)),
        )


def training_cost(ledger: Ledger, shape: TrainShape, *, timed: bool = True) -> Cost:
    """What training the model of `ledger` costs an update; not `timed`, without its work, which takes as long to find
    as its memory. RequestError where nothing is trainable."""
    trained = [row for row in ledger.rows if row.trainable and not row.tied_to]
    if not trained:
        raise RequestError("No parameter of the model is trainable.", hint="Packed weights need an adapter to train.")
    arithmetic = PRECISIONS[shape.precision][1]
    table = next(row for row in ledger.rows if row.layout is Layout.TABLE)
    computed = arithmetic or shape.dtype(table)
    attention, _ = attention_for(
        # Virtual tokens are attended to under a mask, by whatever is asked for.
        "sdpa" if any(row.module.startswith(VIRTUAL) for row in ledger.rows) else shape.attention,
        ledger.dims,
        arithmetic=computed,
        device=shape.device,
        packed=shape.masked,
    )
    run = RunShape(
        shape.batch,
        shape.sequence,
        arithmetic=arithmetic,
        attention=attention,
        masked=shape.masked,
        checkpoint_every=shape.checkpoint_every,
        checkpoint_blocks=shape.checkpoint_blocks,
        checkpoint_keeps=shape.checkpoint_keeps,
        offload=shape.offload and shape.device == "cuda",
        loss_chunk=shape.loss_chunk,
        fused_kernels=shape.fused_kernels,
        float8=shape.float8,
        exits=shape.exits or (tuple(range(2, ledger.dims.num_layers, shape.exit_every)) if shape.exit_every else ()),
        device=shape.device,
    )
    tape = record(ledger, run, shape.dtype)
    gradients = gradient_bytes(ledger, shape)
    held = replay(
        tape,
        gradients=gradients if shape.accumulation > 1 else 0,
        moving=(lambda elements: moving_bytes((elements,), shape)) if shape.fused else None,
        twice=shape.twice,
    )
    resting = Bytes(
        weights=weight_bytes(ledger, shape.dtype),
        optimizer=optimizer_bytes(ledger, shape),
        master=4 * ledger.trainable if shape.precision == "master" else 0,
        temporary=_beside_states(ledger, shape) if shape.device == "cuda" else 0,
    )
    stepping = Bytes(gradients=gradients, temporary=stepping_bytes(trained, shape))
    phases = {
        "forward": resting + during(held.forward),
        "backward": resting + during(held.backward),
        "step": resting + (during(held.second) if shape.fused else stepping),
    }
    per_update = shape.batch * shape.sequence * shape.accumulation
    work = _training_work(tape, trained, shape) if timed else {}
    notes = notes_of(ledger.dims, attention)
    if shape.twice:
        why = "fp16's loss scale" if not shape.clips else "clip_norm"
        notes += (f"two backward passes an update: {why} must know all gradients before weights move",)
    host = sum(segment.times * segment.offloaded.bytes for segment in tape.segments if segment.offloaded)
    if host:
        notes += (f"{host / 1e9:.3g} GB of what enters blocks lie in the host's memory",)
    return Cost(phases, work, per_update, notes)


def _training_work(tape: Tape, trained: Sequence[Row], shape: TrainShape) -> dict[str, Work]:
    """The work of an update by its phases."""
    backward = backward_work(tape)
    return {
        "forward": forward_work(tape).times(shape.accumulation),
        "backward": backward.times(shape.accumulation),
        "step": moving_work(trained, shape) + (backward if shape.twice else Work()),
    }


def weight_bytes(ledger: Ledger, dtype: Callable[[Row], str] = lambda row: row.dtype, *, trained: bool = False) -> int:
    """Bytes of weights, plain rows and codebooks as `dtype`, codes as they are held; only trained ones if `trained`."""
    total = 0
    for row in ledger.rows:
        if row.trainable or not trained:
            total += _packed_bytes(row, dtype(row)) if is_packed(row) else row.elements * item_bytes(dtype(row))
    return total


def _packed_bytes(row: Row, dtype: str) -> int:
    """Bytes of a packed row after its model is cast to `dtype`, as far as its tensors are cast with it."""
    if row.tied_to:
        return 0
    held = (
        tensor.bytes // item_bytes(tensor.dtype) * item_bytes(dtype) if tensor.cast else tensor.bytes
        for tensor in row.held
    )
    return row.count * sum(held)


def gradient_bytes(ledger: Ledger, shape: TrainShape) -> int:
    """Bytes of all gradients: one in the weight's dtype for each trained parameter."""
    return weight_bytes(ledger, shape.dtype, trained=True)


def optimizer_bytes(ledger: Ledger, shape: TrainShape) -> int:
    """Bytes the optimizer remembers for all trained parameters."""
    return sum(
        row.count * shape.state_bytes(row.shape, shape.moved_dtype)
        for row in ledger.rows
        if row.trainable and not row.tied_to
    )


def _beside_states(ledger: Ledger, shape: TrainShape) -> int:
    """On CUDA: workspaces of libraries, and what the memory of weights and states has beyond their own bytes.

    States are taken for tensors as large as what is moved, as far as they are, and one for the rest.
    """
    total = 2 * workspace_bytes(biases=True)
    for row in ledger.rows:
        if row.tied_to:
            continue
        dtype, tensors = shape.dtype(row), [tensor.bytes for tensor in row.held]
        if not is_packed(row):
            tensors = [math.prod(row.shape) * item_bytes(dtype)]
        if row.trainable:
            moved = math.prod(row.shape) * item_bytes(shape.moved_dtype)
            whole, rest = divmod(shape.state_bytes(row.shape, shape.moved_dtype), moved)
            tensors += [moved] * whole + [rest] * (rest > 0) + [moved] * (shape.precision == "master")
        total += row.count * sum(allocated_bytes(size) - size for size in tensors)
    return total


def kv_cache_bytes(
    dims: ModelDims, batch: int, context: int, dtype: str | None = None, form: CacheForm | None = None
) -> int:
    """Bytes of keys and values of `context` tokens; an encoder-decoder also keeps those of as many source tokens."""
    stacks = 2 if dims.encoder_layers else 1
    if form is not None:
        heads = stacks * dims.num_layers * dims.num_kv_heads * batch
        return heads * form.bytes(dims.head_dim, item_bytes(dtype or dims.dtype), context)
    return 2 * stacks * dims.num_layers * dims.kv_width * batch * context * item_bytes(dtype or dims.dtype)


def is_packed(row: Row) -> bool:
    """Whether a row's weights lie in memory in another form than their own."""
    return unpacked_bytes(row) > 0


def during(held: Held) -> Bytes:
    """What a run holds, as bytes by cause."""
    return Bytes(gradients=held.gradients, activations=held.activations, loss=held.loss, temporary=held.temporary)


def notes_of(dims: ModelDims, attention: str) -> tuple[str, ...]:
    """What a cost assumes, in words."""
    notes = [f"attention: {attention}, arithmetic counted causal"]
    if dims.model_type not in VERIFIED:
        notes.append(f"activations of {dims.model_type} are unverified")
    if dims.attention_dropout or dims.dropout:
        notes.append("dropout masks included")
    return tuple(notes)


def at_least(least: int, **values: int) -> None:
    """RequestError for a value that is no whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise bad_value(name, value, allowed=f"a whole number of at least {least}")
