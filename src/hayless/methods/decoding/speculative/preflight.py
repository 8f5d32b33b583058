"""What speculation gives on these prompts and this machine, measured before it is used.

A few tokens are made without drafts and with them. From the times follow c and v, from what was kept follows α; the
formula E/(γc + v) then says how many tokens to draft, or that none should be (see predict.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from hayless.decode.request import Batch, Request
from hayless.methods.decoding.speculative.predict import best_drafted, speedup
from hayless.methods.decoding.speculative.tally import Tally

TOKENS = 32
"""Tokens of each request that are made to measure with."""
SECONDS = 2.0
"""No further pass is begun after so long."""
MOST, FIRST = 8, 4
"""Tokens drafted a pass: at most, and in the first measurement."""
_PASSES = 3
_GAIN = 1.03
"""Speculation that would gain less is not worth the risk that the text changes."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """c, v and α as measured with `measured` drafted tokens, and how many are best; `drafted` is 0 where none are."""

    cost: float
    verify: float
    acceptance: float
    measured: int
    drafted: int

    def verify_of(self, drafted: int) -> float:
        """v for another number of drafted tokens, on the line through v(0) = 1."""
        return 1 + (self.verify - 1) * drafted / self.measured

    def speedup(self, drafted: int) -> float:
        """What the formula gives for a number of drafted tokens."""
        return speedup(self.acceptance, drafted, self.cost, max(self.verify_of(drafted), 1e-9))

    def best(self, most: int = MOST) -> int:
        """The number of drafted tokens that the formula finds fastest; 0 where they gain too little."""
        found = best_drafted(self.acceptance, self.cost, lambda drafted: max(self.verify_of(drafted), 1e-9), most)
        return found if self.speedup(found) >= _GAIN else 0

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
    without = _timed(plain(_copies(requests)))
    found = _with(requests, speculative, drafted or FIRST, without)
    best = found.best() if drafted is None else (drafted if found.speedup(drafted) >= _GAIN else 0)
    if best not in (0, found.measured):
        found = _with(requests, speculative, best, without)
        best = best if found.speedup(best) >= _GAIN else 0
    return replace(found, drafted=best)


def _with(
    requests: Sequence[Request],
    speculative: Callable[[Sequence[Request], int, Tally], Batch],
    drafted: int,
    without: float,
) -> Preflight:
    tally = Tally()
    passes = _timed(speculative(_copies(requests), drafted, tally), lambda: tally.drafted)
    if tally.acceptance is None:
        return Preflight(0.0, 1.0, 0.0, drafted, 0)
    draft = tally.draft_seconds
    return Preflight(draft / without, passes / without - drafted * draft / without, tally.acceptance, drafted, 0)


def _timed(batch: Batch, counted: Callable[[], int] | None = None) -> float:
    """Median seconds of a pass, of those that change what is `counted`, but for the first, which also reads prompts."""
    start = time.perf_counter()
    seconds: list[float] = []
    while batch.active and (len(seconds) < _PASSES or time.perf_counter() - start < SECONDS):
        before, begun = counted and counted(), time.perf_counter()
        _take(batch)
        if counted is None or counted() != before:
            seconds.append(time.perf_counter() - begun)
    return median(seconds[1:] or seconds or [0.0])


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
