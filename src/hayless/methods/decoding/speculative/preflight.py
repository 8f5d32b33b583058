"""What speculation gives on these prompts and this machine, measured before it is used.

A few tokens are made without drafts and with them. From the times follow c and v, from what was kept follows α; the
formula E/(γc + v) then says how many tokens to draft, or that none should be (see predict.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hayless.decode.request import Batch, Request
from hayless.methods.decoding.speculative.config import FIRST, MOST
from hayless.methods.decoding.speculative.predict import best_drafted, speedup
from hayless.methods.decoding.speculative.tally import Tally

TOKENS = 32
"""Tokens of each request that are made to measure with."""
SECONDS = 2.0
"""No further pass is begun after so long."""
_PASSES = 3
_GAIN = 1.03
"""Speculation that would gain less is not worth the risk that the text changes."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """c and v as measured with `measured` drafted tokens, how many of `tested` drafted tokens were `kept`, and how many
    are drafted from now on: 0 where that is slower than not to."""

    cost: float
    verify: float
    tested: int
    kept: int
    measured: int
    drafted: int = 0

    @property
    def acceptance(self) -> float:
        """α; 0 where nothing could be drafted."""
        return self.kept / self.tested if self.tested else 0.0

    def verify_of(self, drafted: int) -> float:
        """v for another number of drafted tokens, on the line through v(0) = 1; never less."""
        return max(1.0, 1 + (self.verify - 1) * drafted / self.measured)

    def speedup(self, drafted: int) -> float:
        """What the formula gives for a number of drafted tokens."""
        return speedup(self.acceptance, drafted, self.cost, self.verify_of(drafted))

    def best(self) -> int:
        """The number of drafted tokens that the formula finds fastest; 0 where they gain too little."""
        found = best_drafted(self.acceptance, self.cost, self.verify_of, MOST)
        return found if self.speedup(found) >= _GAIN else 0

    def adapted(self, used: Tally) -> Preflight:
        """The same with what was kept since, and with the number of drafted tokens that is now best, unless the one
        that there is will do: another costs new captured graphs."""
        now = replace(self, tested=self.tested + used.tested, kept=self.kept + used.kept)
        best = now.best()
        stay = now.speedup(self.drafted) >= 1 and now.speedup(best) < _GAIN * now.speedup(self.drafted)
        return replace(now, drafted=self.drafted if stay else best)

    def __str__(self) -> str:
        count = self.drafted or self.measured
        measured = (
            f"a draft costs {self.cost:.2f} of a step, checking {self.measured + 1} tokens {self.verify:.2f},"
            f" {self.acceptance:.0%} of drafted tokens are kept"
        )
        if self.drafted:
            return f"on, {count} tokens a pass: {measured}; expected speed-up {self.speedup(count):.2f}×"
        return f"off, it would not pay: {measured}; {count} tokens a pass would give {self.speedup(count):.2f}×"


def measure(
    requests: Sequence[Request],
    plain: Callable[[Sequence[Request]], Batch],
    speculative: Callable[[Sequence[Request], int, Tally], Batch],
    drafted: int | None,
) -> Preflight:
    """Measure on copies of the requests; `drafted` is a wish, or None for the best."""
    steps = [_timed(plain(_copies(requests)))]

    def tried(count: int) -> Preflight:
        tally = Tally()
        seconds = _timed(speculative(_copies(requests), count, tally), lambda: tally.drafted)
        # Before and after, so that a machine that is busy for a moment does not speak for drafts.
        steps.append(_timed(plain(_copies(requests))))
        if not tally.tested:
            return Preflight(0.0, 1.0, 0, 0, count)
        step, draft = min(steps), low(list(tally.drafting)[1:] or tally.drafting)
        return Preflight(draft / step, (seconds - count * draft) / step, tally.tested, tally.kept, count)

    found = tried(drafted or FIRST)
    best = found.best() if drafted is None else drafted
    if best not in (0, found.measured):
        found = tried(best)
    return replace(found, drafted=best if found.speedup(best) >= _GAIN else 0)


def low(values: Iterable[float]) -> float:
    """The lower quartile: what else a machine does only adds to times."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]


def _timed(batch: Batch, counted: Callable[[], int] | None = None) -> float:
    """Seconds of a pass, of those that change what is `counted`, but for the first, which also reads prompts."""
    start = time.perf_counter()
    seconds: list[float] = []
    while batch.active and (len(seconds) < _PASSES or time.perf_counter() - start < SECONDS):
        before, begun = counted and counted(), time.perf_counter()
        _take(batch)
        if counted is None or counted() != before:
            seconds.append(time.perf_counter() - begun)
    return low(seconds[1:] or seconds or [0.0])


def _take(batch: Batch) -> None:
    for request, several in zip(list(batch.active), batch.next(), strict=True):
        for token, logprob in several:
            request.take(token, logprob, 0.0)
            if request.finish is not None:
                break
    batch.drop_ended()


def _copies(requests: Sequence[Request]) -> list[Request]:
    """The same prompts and options, but for ends."""
    return [
        Request(
            request.prompt,
            request.options.model_copy(
                update={"max_tokens": min(TOKENS, request.budget), "ignore_end": True, "stop": ()}
            ),
            None,
            frozenset(),
            None,
        )
        for request in requests
    ]
