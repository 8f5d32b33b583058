"""Copies and near-copies among documents.

A document is the set of its shingles: five words in a row, lower case, punctuation and white space ignored. Two
documents are near-copies when their sets' Jaccard similarity |A∩B| / |A∪B| is at least `THRESHOLD`. Candidates come
from MinHash signatures (Broder, On the resemblance and containment of documents, 1997) compared in bands of
locality-sensitive hashing; each candidate is then checked on the sets themselves, so what is dropped is a near-copy for
certain. A pair at the threshold is missed with probability (1 − 0.7⁴)³² < 10⁻³.

Signatures are computed for many documents at once; one after the other go only those that share a band's value with
another. What this does not see: a short document contained in a long one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hayless.core.progress import Progress, no_progress

THRESHOLD = 0.7
_WORDS = 5
_BANDS = 32
_ROWS = 4
_KEPT_A_BAND = 16
"""Documents of one band's value that a new one is compared with; bounds the work among thousands of look-alikes."""
_TEXTS_AT_ONCE = 512
_SHINGLES_AT_ONCE = 4096
_WORD = re.compile(r"\w+")

Hashes = NDArray[np.uint64]


def find_copies(
    texts: Sequence[str], *, near_from: int = 0, against: int | None = None, progress: Progress = no_progress
) -> list[int | None]:
    """For each text the index of the earlier one it copies, or None. Exact copies are found everywhere.

    Near-copies are looked for among texts from index `near_from` on, and only against the first `against` texts
    (all earlier ones if None).
    """
    of = _exact_copies(texts)
    different = np.array([index for index, found in enumerate(of) if found is None], dtype=np.int64)
    hasher = _Hasher()
    bands = np.zeros((len(different), _BANDS), dtype=np.uint64)
    any_words = np.zeros(len(different), dtype=np.bool_)
    for start in range(0, len(different), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        bands[part], any_words[part] = hasher.bands([texts[index] for index in different[part]])
        progress("looking for copies", start, len(different))
    seen: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
    kept: dict[int, Hashes] = {}
    alike = np.flatnonzero(any_words & _sharing(bands, any_words))
    for at, own in zip(alike, _each(hasher, texts, different[alike]), strict=True):
        index = int(different[at])
        values = bands[at].tolist()
        if index >= near_from:
            candidates = sorted(
                {other for band, value in zip(seen, values, strict=True) for other in band.get(value, ())}
            )
            of[index] = next((other for other in candidates if similarity(own, kept[other]) >= THRESHOLD), None)
        if of[index] is None and (against is None or index < against):
            kept[index] = own
            for band, value in zip(seen, values, strict=True):
                members = band.setdefault(value, [])
                if len(members) < _KEPT_A_BAND:
                    members.append(index)
    progress("looking for copies", len(different), len(different))
    return of


def _each(hasher: _Hasher, texts: Sequence[str], chosen: NDArray[np.int64]) -> Iterator[Hashes]:
    """The shingles of each chosen text, worked out for many at once."""
    for start in range(0, len(chosen), _TEXTS_AT_ONCE):
        yield from hasher.shingles([texts[index] for index in chosen[start : start + _TEXTS_AT_ONCE]])


def _exact_copies(texts: Sequence[str]) -> list[int | None]:
    first: dict[bytes, int] = {}
    found = [first.setdefault(sha256(text.encode()).digest(), index) for index, text in enumerate(texts)]
    return [None if earlier == index else earlier for index, earlier in enumerate(found)]


def _sharing(bands: Hashes, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the chosen documents (d,) have the value of a band (d, bands) in common with another chosen one."""
    found = np.zeros(len(bands), dtype=np.bool_)
    places = np.flatnonzero(chosen)
    for values in bands[places].T:
        order = np.argsort(values, kind="stable")
        same = values[order[1:]] == values[order[:-1]]
        found[places[order[1:][same]]] = True
        found[places[order[:-1][same]]] = True
    return found


def similarity(one: Hashes, other: Hashes) -> float:
    """Jaccard similarity of two sorted sets of shingles; 0 where one is empty."""
    if not len(one) or not len(other):
        return 0.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class _Numbers(dict[str, int]):
    """Words → numbers, each worked out once."""

    def __missing__(self, word: str) -> int:
        number = self[word] = zlib.crc32(word.encode())
        return number


class _Hasher:
    """Shingles as 64-bit hashes, and the bands of their MinHash signatures."""

    def __init__(self) -> None:
        random = np.random.Generator(np.random.PCG64(20_240_601))
        size = _BANDS * _ROWS
        self._multiply = random.integers(0, 2**63, (size, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._add = random.integers(0, 2**63, (size, 1), dtype=np.uint64)
        self._mix = random.integers(0, 2**63, _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._numbers = _Numbers()

    def shingles(self, texts: Sequence[str]) -> list[Hashes]:
        """For each text the sorted distinct hashes of every `_WORDS` words in a row; of all words in a short one."""
        found, counts = self._shingles(texts)
        order = np.lexsort((found, np.repeat(np.arange(len(texts)), counts)))
        sets = np.split(found[order], np.cumsum(counts)[:-1])
        return [one[np.append(True, one[1:] != one[:-1])] if len(one) else one for one in sets]

    def bands(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.bool_]]:
        """For each text (d,) one value a band (d, bands), equal values making candidates; and whether it has words."""
        shingles, counts = self._shingles(texts)
        owner = np.repeat(np.arange(len(texts)), counts)
        signatures = np.full((_BANDS * _ROWS, len(texts)), np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
            part = slice(start, start + _SHINGLES_AT_ONCE)
            owners, firsts = np.unique(owner[part], return_index=True)
            lowest = np.minimum.reduceat(shingles[part] * self._multiply + self._add, firsts, axis=1)
            signatures[:, owners] = np.minimum(signatures[:, owners], lowest)
        mixed = _scramble(signatures.T.copy()).reshape(len(texts), _BANDS, _ROWS) * self._mix
        return mixed.sum(axis=2, dtype=np.uint64), counts > 0

    def _shingles(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        """The hashes of all texts' shingles one after the other, repeated ones too, and how many each text has."""
        number = self._numbers.__getitem__
        split = [_WORD.findall(text.lower()) for text in texts]
        sizes = np.array([len(words) for words in split], dtype=np.int64)
        words = np.fromiter(map(number, chain.from_iterable(split)), dtype=np.uint64, count=int(sizes.sum()))
        widths = np.minimum(sizes, _WORDS)
        counts = np.where(sizes, sizes - widths + 1, 0)
        first_word = np.cumsum(sizes) - sizes
        first_shingle = np.cumsum(counts) - counts
        place = np.arange(counts.sum()) + np.repeat(first_word - first_shingle, counts)
        width = np.repeat(widths, counts)
        total = np.zeros(len(place), dtype=np.uint64)
        for offset in range(_WORDS):
            inside = width > offset
            mixed = _scramble(total + words[np.where(inside, place + offset, 0)]) if len(words) else total
            total = np.where(inside, mixed, total)
        return total, counts


def _scramble(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
