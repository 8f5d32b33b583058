"""Batches: what a model reads in one forward pass, made from a token store.

Shapes: b rows, s positions. Position t of a row reads `input_ids[t]` and must predict `targets[t]`, the next token of
the same document, or nothing where it is −100. Targets are made before documents are packed, so no target lies in
another document, and what a position sees is kept inside its own: by `attention_mask`, or by the batch's `Spans`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hayless.core.errors import RequestError, bad_value
from hayless.data.config import Mixture
from hayless.data.facts import learnt_within
from hayless.data.order import Order, whole_weights
from hayless.data.packing import Pieces, Rows, pack, split_pieces
from hayless.data.store import TokenStore

IGNORED = -100
_PREFERENCE_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Spans:
    """Where documents lie among the b · s positions of a batch, row after row; the padding of a row is a span too.

    Span i holds the positions `cumulative[i]` to `cumulative[i + 1]` − 1, (spans + 1,) int32; `longest` is the longest.
    """

    cumulative: Tensor
    longest: int

    @staticmethod
    def of(segments: Tensor) -> Spans:
        """The spans of `segments` (b, s): a new one where the number changes, and with every row."""
        numbers = segments.cpu().numpy()
        begins = np.ones(numbers.shape, dtype=np.bool_)
        begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        cumulative = np.append(np.flatnonzero(begins), numbers.size).astype(np.int32)
        return Spans(torch.from_numpy(cumulative), int(np.diff(cumulative).max(initial=0)))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents, all tensors (b, s) int64.

    `position_ids` start at 0 in each document; `segments` number the documents of a row, −1 is padding. `documents`
    names the documents of each row. In a batch of preferences row 2i is the chosen and row 2i + 1 the rejected answer.
    `spans` are those of `segments`, found while they lie on the host, so that a GPU need not be asked.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    segments: Tensor
    documents: tuple[tuple[str, ...], ...]
    spans: Spans = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.spans is None:
            object.__setattr__(self, "spans", Spans.of(self.segments))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU run in the background."""
        return self._mapped(Tensor.pin_memory)

    @property
    def trained_tokens(self) -> int:
        """Positions with a target."""
        return int((self.targets != IGNORED).sum())

    @property
    def input_tokens(self) -> int:
        """Positions that hold a token of a document."""
        return int((self.segments >= 0).sum())

    @property
    def padded_tokens(self) -> int:
        """Positions that hold padding."""
        return self.segments.numel() - self.input_tokens

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            targets=change(self.targets),
            position_ids=change(self.position_ids),
            segments=change(self.segments),
            spans=replace(self.spans, cumulative=change(self.spans.cumulative)),
        )


def attention_mask(segments: Tensor, dtype: torch.dtype | None = None, *, window: int | None = None) -> Tensor:
    """Which position may see which: (b, 1, s, s), True where both lie in one document and the seen one is not later.

    Explicit, because transformers finds packed documents by itself only in some models and settings. Padding sees
    padding, so that no row of scores is empty. With a floating `dtype` the mask is 0 and the lowest number of that
    type, as eager attention adds it. `window` limits how many positions back (itself included) a sliding layer sees.
    """
    length = segments.shape[1]
    position = torch.arange(length, device=segments.device)
    distance = position[:, None] - position[None, :]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    allowed = (segments[:, :, None] == segments[:, None, :]) & seen
    allowed = allowed[:, None]
    if dtype is None:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=segments.device).masked_fill(~allowed, torch.finfo(dtype).min)


class Batches:
    """The batches of a training run over a store: `at(step, micro)` depends on nothing but what is given here.

    A step has `batch_size` rows, computed as micro-batches of `micro_batch_size`. Rows of `sequence_length` positions
    are packed inside each domain: whole documents, longer ones split (`lm`) or truncated (`sft`). For preferences a row
    is one answer, padded, the beginning cut off where it is too long, and the sizes count pairs.

    `proportions` are shares of rows by domain, the same throughout or changing with the step; without them each epoch
    has every row once. They, the seed and the step are all that a batch depends on. `positions` are those of all
    rows, and `fill` the share of them that is used (for pairs, as if each answer were padded to `sequence_length`).

    RequestError where the store has nothing to learn at this length, and for proportions of unknown or empty domains.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        sequence_length: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        proportions: Mapping[str, float] | Sequence[Mixture] | None = None,
    ) -> None:
        micro_batch_size = micro_batch_size or batch_size
        if batch_size < 1 or batch_size % micro_batch_size:
            raise bad_value("micro_batch_size", micro_batch_size, allowed=f"a divisor of batch_size ({batch_size})")
        _check_positive("sequence_length", sequence_length)
        self.store = store
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.accumulation = batch_size // micro_batch_size
        plan = _Plan(store, sequence_length, range(len(store)))
        self.truncated, self.skipped = plan.truncated, plan.skipped
        self._pools = plan.pools()
        sizes = [len(pool) for pool in self._pools]
        self.rows = sum(sizes)
        if not self.rows:
            raise RequestError("The training documents have nothing to learn.", hint=plan.description)
        if isinstance(proportions, Mapping):
            proportions = [Mixture(step=0, shares=dict(proportions))] if proportions else None
        stages = []
        for mixture in proportions or ():
            weights = whole_weights(store.domains, mixture.shares)
            for domain, size, weight in zip(store.domains, sizes, weights, strict=True):
                if weight and not size:
                    raise RequestError(
                        f"proportions names {domain}, but the domain has no training rows at this length."
                    )
            stages.append((mixture.step * batch_size, weights))
        self._order = Order(sizes, seed, stages)
        used = sum(int(pool.pieces.length.sum()) for pool in self._pools)
        self.positions = sum(len(pool) * pool.capacity for pool in self._pools)
        self.fill = used / self.positions
        self.description = plan.description

    def at(self, step: int, micro: int = 0) -> Batch:
        """Micro-batch `micro` (0 to accumulation − 1) of `step`, counted from 0."""
        if step < 0 or not 0 <= micro < self.accumulation:
            raise IndexError(f"step {step}, micro-batch {micro} of {self.accumulation}")
        start = step * self.batch_size + micro * self.micro_batch_size
        places = [self._order.at(number) for number in range(start, start + self.micro_batch_size)]
        rows = [list(self._pools[pool][index]) for pool, index in places]
        return _assemble(self.store, rows, self.sequence_length)

    def step(self, step: int) -> list[Batch]:
        """All micro-batches of a step."""
        return [self.at(step, micro) for micro in range(self.accumulation)]


def one_pass(store: TokenStore, *, sequence_length: int, rows: int, max_tokens: int | None = None) -> Iterator[Batch]:
    """Every document of a store exactly once, packed, in batches of `rows` (pairs for preferences; the last may be
    smaller): for validation. With `max_tokens` only the documents that come first by the hash of their names, up to
    about that many tokens (at least one document)."""
    _check_positive("sequence_length", sequence_length)
    _check_positive("rows", rows)
    chosen: Sequence[int] = range(len(store))
    if max_tokens is not None:
        chosen = _first_documents(store, max_tokens)
    plan = _Plan(store, sequence_length, chosen)
    every = [list(pool[index]) for pool in plan.pools() for index in range(len(pool))]
    for start in range(0, len(every), rows):
        yield _assemble(store, every[start : start + rows], sequence_length)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise bad_value(name, value, allowed="1 or more")


class _Plan:
    """How the chosen documents become rows, by domain."""

    def __init__(self, store: TokenStore, capacity: int, chosen: Sequence[int]) -> None:
        self.store = store
        self.capacity = capacity
        documents = np.asarray(chosen, dtype=np.int64)
        positions = store.lengths[documents] - 1
        self.truncated = self.skipped = 0
        if store.kind == "lm":
            usable = positions > 0
        else:
            usable = learnt_within(store, capacity)[documents] > 0
            if store.kind == "preference":
                usable = np.repeat(usable[::2] & usable[1::2], 2)
            self.truncated = int((usable & (positions > capacity)).sum())
            positions = np.minimum(positions, capacity)
        self.skipped = int((~usable).sum())
        self._documents, self._positions = documents[usable], positions[usable]

    @property
    def description(self) -> str:
        """Counts of what was cut or left out."""
        return f"{self.truncated} documents truncated to {self.capacity} tokens, {self.skipped} left nothing to learn"

    def pools(self) -> list[Rows]:
        """Rows of each domain, in the store's order of domains."""
        return [self._rows(domain) for domain in range(len(self.store.domains))]

    def _rows(self, domain: int) -> Rows:
        mine = self.store.domain_of[self._documents] == domain
        documents, positions = self._documents[mine], self._positions[mine]
        if self.store.kind == "preference":
            start = self.store.lengths[documents] - 1 - positions
            first = np.arange(0, len(documents) + 1, 2, dtype=np.int64)
            return Rows(Pieces(documents, start, positions), first, 2 * self.capacity)
        return pack(split_pieces(documents, positions, self.capacity), self.capacity)


def _first_documents(store: TokenStore, max_tokens: int) -> list[int]:
    chosen: list[int] = []
    total = 0
    together = 2 if store.kind == "preference" else 1
    for index in store.sampling_order:
        if total >= max_tokens:
            break
        if index % together:
            continue
        group = list(range(index, index + together))
        chosen += group
        total += int(store.lengths[group].sum())
    return sorted(chosen)


def _assemble(store: TokenStore, rows: Sequence[Sequence[tuple[int, int, int]]], capacity: int) -> Batch:
    if store.kind == "preference":
        rows = [[answer] for pair in rows for answer in pair]
        longest = max(length for row in rows for _, _, length in row)
        capacity = min(capacity, -(-longest // _PREFERENCE_MULTIPLE) * _PREFERENCE_MULTIPLE)
    shape = (len(rows), capacity)
    input_ids = np.full(shape, store.end, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    for row, pieces in enumerate(rows):
        at = 0
        for segment, (index, start, length) in enumerate(pieces):
            first = int(store.offsets[index])
            tokens = store.tokens[first + start : first + start + length + 1].astype(np.int64)
            learnt = store.trained(first + start + 1, first + start + length + 1, first=first)
            here = slice(at, at + length)
            input_ids[row, here] = tokens[:-1]
            targets[row, here] = np.where(learnt, tokens[1:], IGNORED)
            positions[row, here] = np.arange(length)
            segments[row, here] = segment
            at += length
    names = tuple(tuple(store.ids[index] for index, _, _ in pieces) for pieces in rows)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        position_ids=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        documents=names,
    )
