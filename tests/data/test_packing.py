"""Packing: every position exactly once, nothing across rows, and as full as best fit makes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.data.packing import best_fit, pack, split_pieces

LENGTHS = st.lists(st.integers(0, 90), max_size=60)


def packed(lengths, capacity):
    documents = np.arange(len(lengths), dtype=np.int64)
    return pack(split_pieces(documents, np.asarray(lengths, dtype=np.int64), capacity), capacity)


@given(LENGTHS, st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_every_position_of_every_document_exactly_once(lengths, capacity):
    rows = packed(lengths, capacity)
    seen = {index: [] for index in range(len(lengths))}
    for row in range(len(rows)):
        pieces = list(rows[row])
        assert 0 < sum(length for _, _, length in pieces) <= capacity
        for document, start, length in pieces:
            seen[document] += range(start, start + length)
    assert all(sorted(found) == list(range(length)) for found, length in zip(seen.values(), lengths, strict=True))
    assert rows.fill == pytest.approx(sum(lengths) / max(1, len(rows) * capacity))


@given(LENGTHS, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_only_documents_longer_than_a_row_are_cut_and_only_at_whole_rows(lengths, capacity):
    rows = packed(lengths, capacity)
    for row in range(len(rows)):
        for document, start, length in rows[row]:
            assert start % capacity == 0
            assert length == min(capacity, lengths[document] - start)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_best_fit_is_the_slow_and_obvious_one(lengths):
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(room)) if room[row] >= length]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= length
        else:
            room.append(30 - length)
    found = best_fit(np.asarray(lengths, dtype=np.int64), 30)
    assert found.max() + 1 == len(room)
    used = np.bincount(found, weights=lengths)
    assert sorted(30 - used) == sorted(room)


@pytest.mark.parametrize("capacity", [512, 1024, 2048])
def test_lengths_of_alpaca_fill_rows(capacity):
    counted = json.loads((Path(__file__).parent / "alpaca_lengths.json").read_text())["lengths"]
    lengths = [length for length, count in counted for _ in range(count)]
    assert len(lengths) == 2999
    np.random.default_rng(0).shuffle(lengths)
    assert packed([min(length, capacity) for length in lengths], capacity).fill >= 0.98


@pytest.mark.parametrize("lengths", [[5], [0]])
def test_pieces_that_cannot_be_packed_are_refused(lengths):
    with pytest.raises(ValueError, match="1 to 4"):
        best_fit(np.asarray(lengths, dtype=np.int64), 4)


def test_nothing_packs_to_no_rows():
    assert len(packed([], 4)) == len(packed([0, 0], 4)) == 0
