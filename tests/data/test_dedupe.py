"""Copies: exact ones always, near ones above the threshold, nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.data.dedupe import THRESHOLD, _Hasher, find_copies, similarity
from tests.data import made


def changed(text: str, share: float, seed: int = 0) -> str:
    """`text` with a share of its words replaced, evenly spread."""
    words = text.split()
    chosen = random.Random(seed)
    for at in chosen.sample(range(len(words)), round(share * len(words))):
        words[at] = f"new{chosen.randrange(10**6)}"
    return " ".join(words)


def test_exact_and_near_copies_go_and_others_stay():
    original, other = made.prose(400, 1), made.prose(400, 2)
    texts = [
        original,
        other,
        original,
        changed(original, 0.02),
        original.upper().replace(" ", "\n  "),
        changed(other, 0.5),
    ]
    assert find_copies(texts) == [None, None, 0, 0, 0, None]


def test_near_copies_only_against_the_first_texts_where_that_is_asked():
    a, b = made.prose(400, 1), made.prose(400, 2)
    texts = [a, b, changed(b, 0.01, 1), changed(b, 0.01, 2), changed(a, 0.01)]
    assert find_copies(texts) == [None, None, 1, 1, 0]
    assert find_copies(texts, near_from=1, against=1) == [None, None, None, None, 0]


@pytest.mark.parametrize("texts", [[], [""], ["", " ", "\n"], ["!!!", "???"], ["one", "two"], ["马 草", "草 马"]])
def test_short_and_wordless_texts_are_no_near_copies(texts):
    assert find_copies(texts) == [None] * len(texts)


def test_short_texts_of_the_same_words_are():
    assert find_copies(["Yes, please!", "yes please"]) == [None, 0]


def test_thousands_of_lookalikes_are_quick_and_still_found():
    base = made.prose(60, 3)
    copies = find_copies([f"{base} number{n}" for n in range(3000)])
    assert copies[0] is None and all(found == 0 for found in copies[1:])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10**6))
def test_what_is_dropped_is_above_the_threshold_and_what_is_far_above_is_dropped(percent, seed):
    text = made.prose(500, 5)
    near = changed(text, percent / 100, seed)
    hasher = _Hasher()
    truth = shingle_sets(text, near)
    assert similarity(*hasher.shingles([text, near])) == pytest.approx(truth)
    dropped = find_copies([text, near])[1] is not None
    if dropped:
        assert truth >= THRESHOLD
    if truth > 0.8:
        assert dropped


def shingle_sets(one: str, other: str) -> float:
    """Jaccard similarity the slow and obvious way."""
    sets = []
    for text in (one, other):
        words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()
        sets.append({tuple(words[at : at + 5]) for at in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_hashes_do_not_depend_on_the_process_or_on_what_came_before():
    fresh, used = _Hasher(), _Hasher()
    used.shingles([made.prose(100, 9)])
    [one], [_, other] = fresh.shingles(["a b c d e f"]), used.shingles(["", "a b c d e f"])
    assert np.array_equal(one, other)
    assert fresh.shingles(["a b c d e"])[0].tolist() == [8855121942779036749]
