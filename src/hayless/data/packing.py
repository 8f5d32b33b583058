"""Which documents share a row: best-fit packing (Ding et al., Fewer Truncations Improve Language Modeling, 2024).

A document longer than a row is split into whole rows and a rest; every piece then goes, the longest first, into the
fullest row it still fits into. A piece is never split for the sake of filling: the only cuts are those that the row's
length forces.

Positions, not tokens, are packed: a document of n tokens takes n − 1 positions, each of which predicts the next token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Parts of documents (p,): the document's index, its first position, how many positions."""

    document: Indices
    start: Indices
    length: Indices


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows: row r holds the pieces `first[r]` to `first[r + 1]` of `pieces`."""

    pieces: Pieces
    first: Indices
    capacity: int

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(document, first position, positions) of each piece of a row."""
        for at in range(int(self.first[row]), int(self.first[row + 1])):
            yield int(self.pieces.document[at]), int(self.pieces.start[at]), int(self.pieces.length[at])

    @property
    def fill(self) -> float:
        """Share of all positions that are used."""
        return float(self.pieces.length.sum() / max(1, len(self) * self.capacity))


def split_pieces(documents: Indices, lengths: Indices, capacity: int) -> Pieces:
    """Documents (d,) of `lengths` positions as pieces of at most `capacity`; documents without positions give none."""
    counts = -(-lengths // capacity)
    document = np.repeat(documents, counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * capacity
    return Pieces(document, start, np.minimum(capacity, np.repeat(lengths, counts) - start))


def pack(pieces: Pieces, capacity: int) -> Rows:
    """Pieces in rows of `capacity` positions by best-fit decreasing; equal pieces stay in their order."""
    row_of = best_fit(pieces.length, capacity)
    order = np.argsort(row_of, kind="stable")
    first = np.searchsorted(row_of[order], np.arange(row_of.max(initial=-1) + 2))
    chosen = Pieces(pieces.document[order], pieces.start[order], pieces.length[order])
    return Rows(chosen, first.astype(np.int64), capacity)


def best_fit(lengths: Indices, capacity: int) -> Indices:
    """The row (p,) of each piece: by falling length, each into the row with the least room that still holds it."""
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"lengths must lie in 1 to {capacity}")
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # Bit r is set where some row has room for exactly r positions.
    rows = 0
    for piece in np.argsort(-lengths, kind="stable"):
        length = int(lengths[piece])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            room, row, rows = capacity, rows, rows + 1
        left = room - length
        if left:
            rows_with[left].append(row)
            rooms |= 1 << left
        row_of[piece] = row
    return row_of
