"""Copies and near-copies among documents.

A document is the set of its shingles: five words in a row, lower case, punctuation and white space ignored. Two
documents are near-copies when their sets' Jaccard similarity |A∩B| / |A∪B| is at least `THRESHOLD`. Candidates come
from MinHash signatures (Broder, On the resemblance and containment of documents, 1997) compared in bands of
locality-sensitive hashing; each candidate is then checked on the sets themselves, so what is dropped is a near-copy for
certain. A pair at the threshold is missed with probability (1 − 0.7⁴)³² < 10⁻³.

What this does not see: a short document contained in a long one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from hayless.core.progress import Progress, no_progress

THRESHOLD = 0.7
_WORDS = 5
_BANDS = 32
_ROWS = 4
_KEPT_A_BAND = 16
"""Documents of one band's value that a new one is compared with; bounds the work among thousands of look-alikes."""
_CHUNK = 4096

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Copies:
    """`of`: for each document the index of the earlier kept one it copies, or None. Counts of exact and near copies."""

    of: list[int | None]
    exact: int
    near: int


def find_copies(
    texts: Sequence[str], *, near_from: int = 0, against: int | None = None, progress: Progress = no_progress
) -> Copies:
    """Which texts copy an earlier kept one. Exact copies are found everywhere.

    Near-copies are looked for among texts from index `near_from` on, and only against the first `against` texts
    (all earlier ones if None).
    """
    first: dict[bytes, int] = {}
    bands: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
    shingles: dict[int, Hashes] = {}
    hasher = _Hasher()
    of: list[int | None] = []
    exact = near = 0
    for index, text in enumerate(texts):
        if index % 256 == 0:
            progress("looking for copies", index, len(texts))
        key = _key(text)
        found = first.setdefault(key, index)
        if found != index:
            of.append(found)
            exact += 1
            continue
        own = hasher.shingles(text)
        values = hasher.bands(own) if len(own) else []
        copied = None
        if index >= near_from:
            candidates = sorted(
                {other for band, value in zip(bands, values, strict=False) for other in band.get(value, ())}
            )
            copied = next((other for other in candidates if similarity(own, shingles[other]) >= THRESHOLD), None)
        of.append(copied)
        if copied is not None:
            near += 1
        elif against is None or index < against:
            shingles[index] = own
            for band, value in zip(bands, values, strict=False):
                members = band.setdefault(value, [])
                if len(members) < _KEPT_A_BAND:
                    members.append(index)
    progress("looking for copies", len(texts), len(texts))
    return Copies(of, exact, near)


def similarity(one: Hashes, other: Hashes) -> float:
    """Jaccard similarity of two sorted sets of shingles; 0 where one is empty."""
    if not len(one) or not len(other):
        return 0.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class _Hasher:
    """Shingles as 64-bit hashes, and the bands of their MinHash signatures."""

    def __init__(self) -> None:
        random = np.random.Generator(np.random.PCG64(20_240_601))
        size = _BANDS * _ROWS
        self._multiply = random.integers(0, 2**63, size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._add = random.integers(0, 2**63, size, dtype=np.uint64)
        self._mix = random.integers(0, 2**63, _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._words: dict[str, int] = {}

    def shingles(self, text: str) -> Hashes:
        """Sorted distinct hashes of every `_WORDS` words in a row; of all words where there are fewer."""
        known = self._words
        numbers = []
        for word in re.findall(r"\w+", text.lower()):
            number = known.get(word)
            if number is None:
                number = known[word] = zlib.crc32(word.encode())
            numbers.append(number)
        words = np.array(numbers, dtype=np.uint64)
        if not len(words):
            return words
        width = min(_WORDS, len(words))
        total = np.zeros(len(words) - width + 1, dtype=np.uint64)
        for offset in range(width):
            total = _scramble(total + words[offset : len(words) - width + 1 + offset])
        return np.unique(total)

    def bands(self, shingles: Hashes) -> list[int]:
        """One value a band: equal values make candidates."""
        signature = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            part = shingles[start : start + _CHUNK, None] * self._multiply + self._add
            signature = np.minimum(signature, part.min(axis=0))
        mixed = (_scramble(signature).reshape(_BANDS, _ROWS) * self._mix).sum(axis=1, dtype=np.uint64)
        return [int(value) for value in mixed]


def _scramble(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(text: str) -> bytes:
    return sha256(text.encode()).digest()
