"""How many tokens the next pass drafts: drafts are used as long as tokens come faster with them than without.

What a preflight finds on a few tokens need not hold for the whole text, nor beside other requests. So passes are timed
while texts are made, and what decides is the seconds that a pass with drafts saves, beside how sure that is
(`saved`). Drafts that have not won yet are on trial: they stay once they surely win, and rest where they lose, or where
the trial ends in doubt; they rest much longer than the trial took, and longer each time. All of it is known for
each size of the batch by itself, up to a power of 2. No torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Protocol

from hayless.methods.decoding.speculative.preflight import GAIN, Preflight, saved
from hayless.methods.decoding.speculative.tally import Tally

_PLAIN = 3
"""Passes without drafts that are timed before drafts are judged."""
_TRIAL = ((4, 2.0), (8, 1.5), (16, 1.0), (32, 0.5))
"""Drafts on trial rest where, after so many passes, they lose by so many standard errors."""
_PROVEN = ((4, 4.0), (16, 2.5), (32, 2.0), (64, 1.5), (256, 0.5))
"""Drafts that have won rest where they lose so over the last so many passes."""
_SURE, _ENOUGH = 16, 64
"""Passes of a trial before drafts can have won, and at which it ends."""
_WINDOW, _KEPT = 256, 32
"""Passes with drafts that are remembered, and that still are when a trial begins."""
_FRESH = 64
"""While drafts are used, one pass of so many goes without them."""
_REST, _LONGEST, _SHARE = 64, 16384, 128
"""Passes without drafts before they are tried again: at first, at most, and beside the passes of the trial."""
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

    def rests(self, rows: int, passes: int, *, whole: bool) -> bool:
        """Whether a batch of so many rows and at most so many passes goes without drafts from its beginning to its
        end. Its passes count as rest then. With `whole`, drafts cannot begin in its middle."""

    def steady(self, rows: int) -> int:
        """Tokens that every pass of a batch drafts that cannot draft another number in its middle."""

    def count(self, rows: int) -> int:
        """Tokens that the next pass of so many rows drafts; 0 for none."""

    def took(self, asked: int, found: Pass) -> None:
        """Hear what became of a pass that was asked to draft so many tokens."""


class Steady:
    """Always as many."""

    def __init__(self, count: int) -> None:
        self.most = count

    def rests(self, rows: int, passes: int, *, whole: bool) -> bool:
        """Never."""
        return False

    def steady(self, rows: int) -> int:
        """As many."""
        return self.most

    def count(self, rows: int) -> int:
        """As many."""
        return self.most

    def took(self, asked: int, found: Pass) -> None:
        """Nothing to learn."""


class Measured:
    """As many as are fastest by what passes took. `fixed` is the only number besides 0, `most` the largest otherwise.

    It begins with what a preflight found, else with a trial of `first` tokens. `say` is told when drafts begin to rest,
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

    def rests(self, rows: int, passes: int, *, whole: bool) -> bool:
        """Whether a batch of so many rows and at most so many passes goes without drafts altogether."""
        size = self._size(rows)
        if not size.resting or (size.resting < passes and not whole):
            return False
        size.resting = max(0, size.resting - passes)
        return True

    def steady(self, rows: int) -> int:
        """Tokens that every pass drafts of a batch that does not rest."""
        return self._size(rows).drafted

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
        if size.resting:
            # A batch that cannot stop drafting: what it goes on to lose is made up for by a longer rest.
            size.resting = min(_LONGEST, size.resting + _SHARE)
            return
        size.since_plain += 1
        size.tried += 1
        size.passes.append(found)
        if not size.plain or (size.tried % _SURE and size.tried not in (4, 8)):
            return
        if size.loses():
            self._tell(size, "off")
            size.rest_now()
        elif not size.won and size.wins():
            self._tell(size, "on")
            size.won, size.rest = True, _REST
        if size.won and not self._fixed and size.tried % _WINDOW == 0:
            size.drafted, before = self._better(size), size.drafted
            if size.drafted != before:
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
                size.drafted, size.won = found.drafted or found.measured, found.drafted > 0
                if not found.drafted:
                    size.resting, size.rest = _REST if found.doubtful else _SHARE * _SURE, 2 * _REST
                    size.said = "off"
        return self._sizes[key]

    def _tell(self, size: _Size, state: str) -> None:
        if self._say is not None and size.said != state:
            each = size.last(_WINDOW)
            tokens, seconds = (fmean(values) for values in each)
            self._say(
                f"Speculation is {state}: a token takes {1000 * seconds / tokens:.3g} ms with drafts,"
                f" {1000 * median(size.plain):.3g} ms without."
            )
        size.said = state


@dataclass(slots=True)
class _Size:
    """What is known of batches of one size; `resting` passes go without drafts from now on, `tried` went with them
    since, and `won` says that they are on trial no more."""

    drafted: int
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    passes: deque[Pass] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    since_plain: int = 0
    tried: int = 0
    won: bool = False
    resting: int = 0
    rest: int = _REST
    said: str = "on"

    def last(self, count: int) -> tuple[list[float], list[float]]:
        """Tokens of a row, and seconds, of the last passes that were to draft, those without a draft included."""
        passes = list(self.passes)[-count:]
        drafting = [one.seconds for one in passes if one.drafted]
        most = _OUTLIER * median(drafting or [one.seconds for one in passes])
        return [1 + fmean(one.kept) for one in passes], [min(one.seconds, most) for one in passes]

    def loses(self) -> bool:
        """Whether drafts are to rest."""
        step = median(self.plain)
        for count, errors in _PROVEN if self.won else _TRIAL:
            if self.tried >= count:
                mean, error = saved(*self.last(count), step)
                if mean + errors * error < 0:
                    return True
        return not self.won and self.tried >= _ENOUGH and not self.wins()

    def wins(self) -> bool:
        """Whether drafts surely save time."""
        mean, error = saved(*self.last(_WINDOW), median(self.plain))
        return self.tried >= _SURE and mean > 1.5 * error

    def rest_now(self) -> None:
        """Go without drafts: long beside the trial, or for a while where they had won."""
        self.resting = min(_LONGEST, self.rest if self.won else max(self.rest, _SHARE * self.tried))
        self.rest = min(_LONGEST, 2 * self.rest)
        self.passes = deque(list(self.passes)[-_KEPT:], maxlen=_WINDOW)
        self.tried, self.won = 0, False
