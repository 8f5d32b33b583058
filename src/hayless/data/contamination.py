"""Held-out documents whose text the training documents hold, in pieces or inside longer ones.

Near-copies of whole documents are left out when data is prepared; this looks inside. A run is a number of learnt tokens
in a row that together stand for about `RUN_BYTES` bytes, so that all tokenizers are measured alike. A held-out document
is contained when at least `SHARE` of its runs occur in training documents (in the manner of the n-gram overlap of PaLM,
Chowdhery et al. 2022, section 8). Documents with fewer than `LEAST_BYTES` learnt bytes are not judged: what is short
is said more than once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hayless.data.facts import Part, parts
from hayless.data.store import TokenStore

RUN_BYTES = 50
SHARE = 0.7
LEAST_BYTES = 200
_SLOTS = 24

Hashes = NDArray[np.uint64]


def contained(train: TokenStore, heldout: TokenStore) -> NDArray[np.bool_]:
    """Which held-out documents (d,) are contained in training documents."""
    length = _run_length(train)
    owners, hashes = [], []
    for part in parts(heldout):
        found, places = _runs(part, length)
        owners.append(part.first + np.searchsorted(part.starts, places, side="right") - 1)
        hashes.append(found)
    owner = np.concatenate(owners)
    wanted, which = np.unique(np.concatenate(hashes), return_inverse=True)
    seen = np.zeros(len(wanted), dtype=np.bool_)
    # Most runs of training documents are in no held-out one: a table of some of their bits sorts these out at once.
    table = np.zeros(1 << _SLOTS, dtype=np.bool_)
    table[_slot(wanted)] = True
    for part in parts(train):
        found, _ = _runs(part, length)
        found = found[table[_slot(found)]]
        if len(found):
            at = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
            seen[at[wanted[at] == found]] = True
    runs = np.bincount(owner, minlength=len(heldout))
    occurring = np.bincount(owner, weights=seen[which], minlength=len(heldout))
    return (runs > 0) & (heldout.bytes >= LEAST_BYTES) & (occurring >= SHARE * runs)


def _run_length(train: TokenStore) -> int:
    """Tokens in a run, from the bytes that a learnt token stands for on average."""
    learnt = sum(int(np.count_nonzero(part.learnt)) for part in parts(train))
    return max(2, round(RUN_BYTES * learnt / max(1, int(train.bytes.sum()))))


def _runs(part: Part, length: int) -> tuple[Hashes, NDArray[np.int64]]:
    """A hash of each run of a part's documents, and where it starts among the part's tokens."""
    count = len(part.tokens) - length + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    learnt = np.concatenate([[0], np.cumsum(part.learnt)])
    one_document = part.place[length - 1 :] - part.place[:count] == length - 1
    places = np.flatnonzero((learnt[length:] - learnt[:count] == length) & one_document)
    return _window_hashes(part.tokens.astype(np.uint64), length)[places], places


def _window_hashes(tokens: Hashes, length: int) -> Hashes:
    """A hash of every `length` tokens in a row, put together from those of the powers of two in `length`."""
    power, size = _mixed(tokens + np.uint64(1)), 1
    found: Hashes | None = None
    covered = 0
    while size <= length:
        if length & size:
            rest = power[covered:]
            found = rest if found is None else _joined(found[: len(rest)], rest)
            covered += size
        power = _joined(power[:-size], power[size:])
        size *= 2
    assert found is not None
    return found[: len(tokens) - length + 1]


def _joined(left: Hashes, right: Hashes) -> Hashes:
    return _mixed(left * np.uint64(0x9E3779B97F4A7C15) + right)


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(29))


def _slot(hashes: Hashes) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _SLOTS)).astype(np.int64)
