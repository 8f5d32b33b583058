"""What speculation gives on these prompts and this machine, measured before it is used.

A few tokens are made without drafts and with them. From the times follow c and v, from what was kept follows α; the
formula E/(γc + v) then says how many tokens to draft (see predict.py). Whether any are is decided by the tokens a
second as well: the formula knows neither passes for which nothing was found, nor that what is kept comes in runs.
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
GAIN = 1.03
"""Speculation that would gain less is not worth the risk that the text changes."""
_PASSES = 3


@dataclass(frozen=True, slots=True)
class Preflight:
    """c and v as measured with `measured` drafted tokens, how many of `tested` drafted tokens were `kept`, and how many
    are drafted from now on: 0 where that is slower than not to. `step` are the seconds of a step without drafts, `gain`
    is how much faster tokens came with drafts; None where that was not measured.
    """

    cost: float
    verify: float
    tested: int
    kept: int
    measured: int
    drafted: int = 0
    step: float = 0.0
    gain: float | None = None

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
        return found if self.speedup(found) >= GAIN else 0

    def pays(self, drafted: int) -> bool:
        """Whether so many gain enough, by the formula and, for the number that was measured, by the clock."""
        slow = drafted == self.measured and self.gain is not None and self.gain < GAIN
        return not slow and self.speedup(drafted) >= GAIN

    def adapted(self, used: Tally) -> Preflight:
        """The same with what was kept since, and with the number of drafted tokens that is now best, unless the one
        that there is will do: another costs new captured graphs."""
        now = replace(self, tested=self.tested + used.tested, kept=self.kept + used.kept)
        best = now.best()
        stay = now.speedup(self.drafted) >= 1 and now.speedup(best) < GAIN * now.speedup(self.drafted)
        return replace(now, drafted=self.drafted if stay else best)

    def __str__(self) -> str:
        count = self.drafted or self.measured
        measured = (
            f"a draft costs {self.cost:.2f} of a step, checking {self.measured + 1} tokens {self.verify:.2f},"
            f" {self.acceptance:.0%} of drafted tokens are kept"
        )
        if self.drafted:
            return f"on, {count} tokens a pass: {measured}; expected speed-up {self.speedup(count):.2f}×"
        slow = count == self.measured and self.gain is not None
        gave = f"gave {self.gain:.2f}×" if slow else f"would give {self.speedup(count):.2f}×"
        return f"off, it would not pay: {measured}; {count} tokens a pass {gave}"


def measure(
    requests: Sequence[Request],
    plain: Callable[[Sequence[Request]], Batch],
    speculative: Callable[[Sequence[Request], int, Tally], Batch],
    drafted: int | None,
) -> Preflight:
    """Measure on copies of the requests; `drafted` is a wish, or None for the best."""

    def step() -> float:
        copies = _copies(requests)
        return low(seconds for seconds, _ in _timed(plain(copies), copies))

    steps = [step()]

    def tried(count: int) -> Preflight:
        tally, copies = Tally(), _copies(requests)
        passes = _timed(speculative(copies, count, tally), copies, lambda: tally.drafted)
        # Before and after, so that a machine that is busy for a moment does not speak for drafts.
        steps.append(step())
        least = min(steps)
        drafting, others = ([seconds for seconds, drafts in passes if drafts is kind] for kind in (True, False))
        if not drafting:
            return Preflight(0.0, 1.0, 0, 0, count, step=least)
        draft, check = low(list(tally.drafting)[1:] or tally.drafting), low(drafting)
        each = (len(drafting) * check + len(others) * low(others or [0.0])) / len(passes)
        return Preflight(
            cost=draft / least,
            verify=(check - count * draft) / least,
            tested=tally.tested,
            kept=tally.kept,
            measured=count,
            step=least,
            gain=(tally.tokens_a_pass or 1.0) * least / each,
        )

    found = tried(drafted or FIRST)
    best = found.best() if drafted is None else drafted
    if best not in (0, found.measured):
        found = tried(best)
    return replace(found, drafted=best if best and found.pays(best) else 0)


def low(values: Iterable[float]) -> float:
    """The lower quartile: what else a machine does only adds to times."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]


def _timed(
    batch: Batch, requests: Sequence[Request], drafted: Callable[[], int] = lambda: 0
) -> list[tuple[float, bool]]:
    """Seconds of each pass, and whether it added to what is `drafted`; without the first, which also reads prompts."""
    end = time.perf_counter() + SECONDS
    passes: list[tuple[float, bool]] = []
    # In graphs those that have yet to join are not active before the first pass.
    while any(one.finish is None for one in requests) and (len(passes) < _PASSES or time.perf_counter() < end):
        before, begun = drafted(), time.perf_counter()
        _take(batch)
        passes.append((time.perf_counter() - begun, drafted() != before))
    return passes[1:] or passes


def _take(batch: Batch) -> None:
    chosen = batch.next()
    for request, several in zip(list(batch.active), chosen, strict=True):
        for token in several:
            request.take(token, 0.0)
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
