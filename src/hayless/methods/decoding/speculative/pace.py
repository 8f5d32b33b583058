"""How many tokens the next pass drafts: drafts are used as long as tokens come faster with them than without.

What a preflight finds on a few tokens need not hold for the whole text, nor beside other requests. So passes are timed
while texts are made. Where drafts lose, they rest; after a while a few passes try them again, later each time that they
lose again. While they win, a pass without drafts now and then keeps the comparison fresh. All of it is known for each
size of the batch by itself, up to a power of 2. No torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Protocol

from hayless.methods.decoding.speculative.preflight import GAIN, Preflight
from hayless.methods.decoding.speculative.tally import Tally

_PLAIN = 3
"""Passes without drafts that are timed before drafts are judged."""
_WINDOW = 32
"""Passes with drafts over which they are judged."""
_PATIENCE = ((16, 1.0), (8, 1.1), (3, 1.5))
"""After so many passes, drafts that take so many times the seconds rest: who loses much is found out sooner."""
_FRESH = 64
"""While drafts win, one pass of so many goes without them."""
_REST, _LONGEST = 64, 1024
"""Passes without drafts before they are tried again: at first, and at most."""
_OUTLIER = 2.0
"""A pass that took so many times the median counts as no more than that: the machine was busy."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass was: tokens drafted a row, seconds in all and of drafting, drafted tokens that each row kept."""

    drafted: int
    seconds: float
    drafting: float
    kept: Sequence[int]


class Pace(Protocol):
    """Says how many tokens to draft; `most` is the largest number that it ever says."""

    most: int

    def count(self, rows: int) -> int:
        """Tokens that the next pass of so many rows drafts; 0 for none."""

    def took(self, asked: int, found: Pass) -> None:
        """Hear what became of a pass that was asked to draft so many tokens."""


class Steady:
    """Always as many."""

    def __init__(self, count: int) -> None:
        self.most = count

    def count(self, rows: int) -> int:
        """As many."""
        return self.most

    def took(self, asked: int, found: Pass) -> None:
        """Nothing to learn."""


class Measured:
    """As many as are fastest by what passes took. `fixed` is the only number besides 0, `most` the largest otherwise.

    It begins with what a preflight found, else with drafts of `first` tokens. `say` is told when drafts begin to rest,
    and when they go on.
    """

    def __init__(
        self,
        first: int,
        most: int,
        *,
        fixed: bool,
        preflight: Preflight | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.most = most
        self._first, self._fixed, self._preflight, self._say = first, fixed, preflight, say
        self._sizes: dict[int, _Size] = {}

    def count(self, rows: int) -> int:
        """Tokens that the next pass of so many rows drafts; 0 for none."""
        size = self._size(rows)
        if len(size.plain) < _PLAIN or size.resting or size.since_plain >= _FRESH:
            return 0
        return size.drafted

    def took(self, asked: int, found: Pass) -> None:
        """Hear what became of a pass that was asked to draft so many tokens."""
        size = self._size(len(found.kept))
        if not asked:
            size.plain.append(found.seconds)
            size.since_plain = 0
            size.resting = max(0, size.resting - 1)
            return
        size.since_plain += 1
        size.passes.append(found)
        patience = next((loss for passes, loss in _PATIENCE if len(size.passes) >= passes), inf)
        with_drafts, without = size.with_drafts, median(size.plain)
        if with_drafts > without * patience:
            size.resting, size.rest = size.rest, min(2 * size.rest, _LONGEST)
            size.passes.clear()
            self._tell(size, "off", with_drafts, without)
        elif len(size.passes) == _WINDOW:
            size.rest = _REST
            self._tell(size, "on", with_drafts, without)
            if not self._fixed:
                size.drafted = self._better(size)
                if size.drafted != asked:
                    size.passes.clear()

    def _better(self, size: _Size) -> int:
        """The number of drafted tokens that the formula finds fastest, unless the one that there is will do."""
        used, step = Tally(), median(size.plain)
        drafting = [one for one in size.passes if one.drafted]
        if not drafting:
            return size.drafted
        for one in drafting:
            used.add(one.drafted, one.kept)
        each = median(one.drafting / one.drafted for one in drafting) / step
        check = median(one.seconds - one.drafting for one in drafting) / step
        found = Preflight(each, check, used.tested, used.kept, size.drafted, size.drafted)
        best = max(range(1, self.most + 1), key=found.speedup)
        return best if found.speedup(best) >= GAIN * found.speedup(size.drafted) else size.drafted

    def _size(self, rows: int) -> _Size:
        """What is known of batches of about so many rows."""
        key = rows.bit_length()
        if key not in self._sizes:
            found = self._preflight
            size = self._sizes[key] = _Size(self._first)
            if found is not None and len(self._sizes) == 1:
                size.plain.extend([found.step] * _PLAIN)
                size.drafted = found.drafted or found.measured
                if not found.drafted:
                    size.resting, size.rest, size.said = _REST, 2 * _REST, "off"
        return self._sizes[key]

    def _tell(self, size: _Size, state: str, with_drafts: float, without: float) -> None:
        if self._say is not None and size.said != state:
            self._say(
                f"Speculation is {state}: a token takes {1000 * with_drafts:.3g} ms with drafts,"
                f" {1000 * without:.3g} ms without."
            )
        size.said = state


@dataclass(slots=True)
class _Size:
    """What is known of batches of one size; `resting` passes go without drafts from now on."""

    drafted: int
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    passes: deque[Pass] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    since_plain: int = 0
    resting: int = 0
    rest: int = _REST
    said: str = "on"

    @property
    def with_drafts(self) -> float:
        """Seconds of a row's token in the passes that were to draft, those for which nothing was found included."""
        drafting = [one.seconds for one in self.passes if one.drafted]
        most = _OUTLIER * median(drafting or [one.seconds for one in self.passes])
        tokens = sum(1 + sum(one.kept) / len(one.kept) for one in self.passes)
        return sum(min(one.seconds, most) for one in self.passes) / tokens
