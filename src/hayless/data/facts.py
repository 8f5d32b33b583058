"""What can be counted of each document of a store, for all documents at once.

Shapes: d documents, T tokens of some of them one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hayless.data.store import TokenStore

_TOKENS_AT_ONCE = 1 << 22

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Facts:
    """Of each document (d,): its tokens and those that are learnt; whether its end token is learnt; whether it starts
    with the begin token, and with two of them; tokens unknown to the tokenizer; tokens learnt within the sequence
    length."""

    tokens: Counts
    learnt: Counts
    ends: Flags
    begins: Flags
    begins_twice: Flags
    unknown: Counts
    learnt_within: Counts


@dataclass(frozen=True, slots=True)
class Part:
    """Some documents of a store: the first one's index, where each starts (d,), all their tokens (T,), which are
    learnt (T,), and the place of each token in its document (T,)."""

    first: int
    starts: Counts
    tokens: NDArray[np.int64]
    learnt: Flags
    place: Counts


def facts(store: TokenStore, sequence_length: int, *, begin: int | None, unknown: int | None) -> Facts:
    """The facts of every document of a store; `begin` and `unknown` are the tokenizer's tokens, where it has them."""
    count = len(store)
    found = Facts(
        tokens=store.lengths,
        learnt=np.zeros(count, dtype=np.int64),
        ends=np.zeros(count, dtype=np.bool_),
        begins=np.zeros(count, dtype=np.bool_),
        begins_twice=np.zeros(count, dtype=np.bool_),
        unknown=np.zeros(count, dtype=np.int64),
        learnt_within=learnt_within(store, sequence_length),
    )
    for part in parts(store):
        here = slice(part.first, part.first + len(part.starts))
        found.learnt[here] = np.add.reduceat(part.learnt, part.starts, dtype=np.int64)
        found.ends[here] = np.logical_or.reduceat(part.learnt & (part.tokens == store.end), part.starts)
        if unknown is not None:
            found.unknown[here] = np.add.reduceat(part.tokens == unknown, part.starts, dtype=np.int64)
        if begin is not None:
            found.begins[here] = part.tokens[part.starts] == begin
            second = np.minimum(part.starts + 1, len(part.tokens) - 1)
            twice = found.begins[here] & (part.tokens[second] == begin) & (found.tokens[here] > 2)
            found.begins_twice[here] = twice
    return found


def learnt_within(store: TokenStore, sequence_length: int) -> Counts:
    """Learnt tokens of each document (d,) among those that fit: the first of examples, the last of preferences.

    A document of plain text is not cut short but split, so there all learnt tokens count.
    """
    found = np.zeros(len(store), dtype=np.int64)
    for part in parts(store):
        here = slice(part.first, part.first + len(part.starts))
        fits = part.place > 0
        if store.kind == "sft":
            fits &= part.place <= sequence_length
        elif store.kind == "preference":
            lengths = np.diff(np.append(part.starts, len(part.tokens)))
            fits &= part.place >= np.repeat(lengths, lengths) - sequence_length
        found[here] = np.add.reduceat(part.learnt & fits, part.starts, dtype=np.int64)
    return found


def parts(store: TokenStore) -> Iterator[Part]:
    """The documents of a store, a few million tokens at a time."""
    offsets = np.asarray(store.offsets)
    first = 0
    while first < len(store):
        last = int(np.searchsorted(offsets, offsets[first] + _TOKENS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), len(store))
        low, high = int(offsets[first]), int(offsets[last])
        starts = offsets[first:last].astype(np.int64) - low
        lengths = np.diff(offsets[first : last + 1])
        place = np.arange(high - low, dtype=np.int64) - np.repeat(starts, lengths)
        tokens = store.tokens[low:high].astype(np.int64)
        yield Part(first, starts, tokens, store.marks(first, last), place)
        first = last
