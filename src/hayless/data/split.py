"""Which documents are held out: decided by their names alone, so that adding documents moves no other.

A document is held out when SHA-256 of its name, read as a number in [0, 1), is below the wanted share. What comes
before a `#` in an id is its name: documents that belong together stay together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

from hayless.core.errors import RequestError
from hayless.data.examples import Record

R = TypeVar("R", bound=Record)


def position(id: str) -> float:
    """Where the document `id` falls in [0, 1)."""
    name = id.partition("#")[0]
    return int.from_bytes(sha256(name.encode()).digest()[:8]) / 2**64


def split(records: Sequence[R], share: float) -> tuple[list[R], list[R]]:
    """(training, held-out) records, each in the given order.

    A domain of at least two names gets at least one of them held out and keeps at least one, whatever the hashes say:
    the one nearest to the border moves. RequestError when nothing can be held out.
    """
    domains: dict[str, set[float]] = defaultdict(set)
    for record in records:
        domains[record.domain].add(position(record.id))
    heldout = {place for places in domains.values() for place in places if place < share}
    for places in domains.values():
        if len(places) > 1 and not places & heldout:
            heldout.add(min(places))
        elif places <= heldout:
            heldout.discard(max(places))
    parts: tuple[list[R], list[R]] = ([], [])
    for record in records:
        parts[position(record.id) in heldout].append(record)
    if not parts[0] or not parts[1]:
        raise RequestError(
            f"{len(records)} document{'s are' if len(records) > 1 else ' is'} too few to hold some out.",
            hint="Give at least two documents: other text is needed to see what was learnt.",
        )
    return parts
