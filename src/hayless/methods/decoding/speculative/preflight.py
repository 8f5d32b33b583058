"""What speculation gives on these prompts and this machine, measured before it is used.

Some tokens are made without drafts and with them. From the times follow c and v, from what was kept follows α; the
formula E/(γc + v) then says how many tokens to draft (see predict.py). Whether any are is decided by the tokens a
second as well: the formula knows neither passes for which nothing was found, nor that what is kept comes in runs. What
so few passes show is not sure, so drafts must win by more than its standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean

from hayless.decode.request import Batch, Request
from hayless.methods.decoding.speculative.config import FIRST, MOST
from hayless.methods.decoding.speculative.predict import best_drafted, speedup
from hayless.methods.decoding.speculative.tally import Tally

TOKENS, MOST_TOKENS = 32, 128
"""Tokens of each request that are made to measure with: without drafts, and with them at most."""
SECONDS = 2.0
"""No further pass is begun after so long."""
GAIN = 1.03
"""Speculation that would gain less is not worth the risk that the text changes."""
_PASSES = 3


@dataclass(frozen=True, slots=True)
class Preflight:
    """c and v as measured with `measured` drafted tokens, how many of `tested` drafted tokens were `kept`, and how many
    are drafted from now on: 0 where that is not surely faster than not to. `step` are the seconds of a step without
    drafts, `gain` is how much faster tokens came with drafts (None where that was not measured), `error` its standard
    error.
    """

    cost: float
    verify: float
    tested: int
    kept: int
    measured: int
    drafted: int = 0
    step: float = 0.0
    gain: float | None = None
    error: float = 0.0

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
        """Whether so many gain enough by the formula and, for the number that was measured, surely by the clock."""
        sure = drafted != self.measured or self.gain is None or self.gain - self.error >= 1
        return sure and self.speedup(drafted) >= GAIN

    @property
    def doubtful(self) -> bool:
        """Whether what was measured is within what may be chance."""
        return self.gain is None or self.gain + self.error >= 1

    def __str__(self) -> str:
        count = self.drafted or self.measured
        measured = (
            f"a draft costs {self.cost:.2f} of a step, checking {self.measured + 1} tokens {self.verify:.2f},"
            f" {self.acceptance:.0%} of drafted tokens are kept"
        )
        if self.drafted:
            return f"on, {count} tokens a pass: {measured}; expected speed-up {self.speedup(count):.2f}×"
        slow = count == self.measured and self.gain is not None
        gave = f"gave {self.gain:.2f}× ± {self.error:.2f}" if slow else f"would give {self.speedup(count):.2f}×"
        return f"off, it would not surely pay: {measured}; {count} tokens a pass {gave}"


def measure(
    requests: Sequence[Request],
    plain: Callable[[Sequence[Request]], Batch],
    speculative: Callable[[Sequence[Request], int, Tally], Batch],
    drafted: int | None,
) -> Preflight:
    """Measure on copies of the requests; `drafted` is a wish, or None for the best."""

    def step() -> float:
        copies = _copies(requests, TOKENS)
        return low(seconds for seconds, _, _ in _timed(plain(copies), copies))

    steps = [step()]

    def tried(count: int) -> Preflight:
        tally, copies = Tally(), _copies(requests, MOST_TOKENS)
        passes = _timed(speculative(copies, count, tally), copies, lambda: tally.drafted)
        # Before and after, so that a machine that is busy for a moment does not speak for drafts.
        steps.append(step())
        least = min(steps)
        drafting, others = ([seconds for seconds, drafts, _ in passes if drafts is kind] for kind in (True, False))
        if not drafting:
            return Preflight(0.0, 1.0, 0, 0, count, step=least)
        draft, check = low(list(tally.drafting)[1:] or tally.drafting), low(drafting)
        usual = {True: check, False: low(others or [0.0])}
        tokens, seconds = [made for _, _, made in passes], [usual[drafts] for _, drafts, _ in passes]
        return Preflight(
            cost=draft / least,
            verify=(check - count * draft) / least,
            tested=tally.tested,
            kept=tally.kept,
            measured=count,
            step=least,
            gain=fmean(tokens) * least / fmean(seconds),
            error=saved(tokens, seconds, least)[1] / fmean(seconds),
        )

    found = tried(drafted or FIRST)
    best = found.best() if drafted is None else drafted
    if best not in (0, found.measured):
        found = tried(best)
    return replace(found, drafted=best if best and found.pays(best) else 0)


def saved(tokens: Sequence[float], seconds: Sequence[float], step: float) -> tuple[float, float]:
    """Seconds that a pass saved beside steps of `step` seconds for as many tokens: their mean, and its standard error.

    Passes are taken to differ by a token at least, so that a few equal ones are not taken for certain.
    """
    each = [count * step - spent for count, spent in zip(tokens, seconds, strict=True)]
    mean = fmean(each)
    spread = sqrt(sum((one - mean) ** 2 for one in each) / max(1, len(each) - 1))
    return mean, max(step, spread) / sqrt(len(each))


def low(values: Iterable[float]) -> float:
    """The lower quartile: what else a machine does only adds to times."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]


def _timed(
    batch: Batch, requests: Sequence[Request], drafted: Callable[[], int] = lambda: 0
) -> list[tuple[float, bool, float]]:
    """Seconds of each pass, whether it added to what is `drafted`, and the tokens that it gave a row; without the
    first, which also reads prompts."""
    end = time.perf_counter() + SECONDS
    passes: list[tuple[float, bool, float]] = []
    # In graphs those that have yet to join are not active before the first pass.
    while any(one.finish is None for one in requests) and (len(passes) < _PASSES or time.perf_counter() < end):
        before, begun = drafted(), time.perf_counter()
        made = _take(batch)
        passes.append((time.perf_counter() - begun, drafted() != before, made))
    return passes[1:] or passes


def _take(batch: Batch) -> float:
    """Make a pass; tokens that it gave a row."""
    chosen = batch.next()
    for request, several in zip(list(batch.active), chosen, strict=True):
        for token in several:
            request.take(token, 0.0)
            if request.finish is not None:
                break
    batch.drop_ended()
    return fmean(map(len, chosen))


def _copies(requests: Sequence[Request], tokens: int) -> list[Request]:
    """The same prompts and options, but for ends, of at most so many tokens."""
    return [
        Request(
            request.prompt,
            request.options.model_copy(
                update={"max_tokens": min(tokens, request.budget), "ignore_end": True, "stop": ()}
            ),
            None,
            frozenset(),
            None,
        )
        for request in requests
    ]
