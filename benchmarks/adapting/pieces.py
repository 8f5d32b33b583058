"""Short pieces of text from many places, and what may be asked about a piece: the data of a library's modules.

A domain's pieces are dealt out to the kinds of tasks, so that no two modules learn from the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import chain

from hayless.data import stdlib
from hayless.data.examples import instruction
from hayless.study.bench.inputs import given

PACKAGES = ("asyncio", "email", "multiprocessing", "tkinter", "unittest", "xml")
DOMAINS = (*PACKAGES, "topics", "headers", "shakespeare", "gsm8k")
KINDS = ("continue", "spaces", "case")
GSM8K = "GSM8K's training part, a question and its answer a row"
_SHORTEST, _MOST = 240, 600
"""Characters of a piece at least; pieces of a domain at most, from all over it."""


def rows(kind: str, domain: str) -> Iterator[dict[str, str]]:
    """Prompts and completions of one kind of task over its share of a domain's pieces. Unavailable without an input."""
    pieces = _pieces(domain)
    for piece in pieces[KINDS.index(kind) :: len(KINDS)]:
        prompt, completion = _asked(kind, piece)
        yield {"prompt": prompt, "completion": completion}


def _asked(kind: str, piece: str) -> tuple[str, str]:
    if kind == "continue":
        middle = len(piece) // 2
        half = piece.rfind(" ", 0, middle) + 1 or middle
        return piece[:half], piece[half:]
    if kind == "spaces":
        return instruction("Put the spaces back.", "".join(piece.split())), piece
    return instruction("Write this in its right case.", piece.lower()), piece


@cache
def _pieces(domain: str) -> list[str]:
    """Whole lines, together so long that they are worth a task."""
    found, lines, size = [], [], 0
    for line in chain.from_iterable(text.splitlines() for text in _texts(domain)):
        if len(line) > _SHORTEST or not line.strip():
            continue
        lines.append(line)
        size += len(line) + 1
        if size >= _SHORTEST:
            found.append("\n".join(lines))
            lines, size = [], 0
    apart = max(1, len(found) // _MOST)
    return found[::apart][:_MOST]


def _texts(domain: str) -> Iterator[str]:
    if domain in PACKAGES:
        for name, path in stdlib.modules(stdlib.places().library):
            if name.startswith(f"{domain}/"):
                yield stdlib.decoded(path) or ""
    elif domain == "shakespeare":
        yield given("shakespeare", "a text file of his plays").read_text(encoding="utf-8")
    elif domain == "gsm8k":
        for line in given("gsm8k", GSM8K).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield f"{row['question']}\n{row['answer']}"
    else:
        of = "topics#" if domain == "topics" else ""
        kind = "english" if domain == "topics" else "c"
        yield from (each.text for each in stdlib.read().documents if each.domain == kind and each.id.startswith(of))
