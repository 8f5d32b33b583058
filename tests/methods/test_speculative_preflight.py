"""Drafts are turned off where they would lose, before a text and while it is made; clocks are set by the batches."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from hayless.decode.eager import EagerBatch
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.request import Chosen, Request
from hayless.methods.decoding.speculative import preflight
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.pace import Measured, Pass
from hayless.methods.decoding.speculative.part import Speculative
from hayless.methods.decoding.speculative.predict import best_drafted
from hayless.methods.decoding.speculative.preflight import Preflight
from hayless.methods.decoding.speculative.tally import Tally
from tests import asset
from tests.methods.speculation import asset_prompts, made_by, random_draft


@pytest.fixture(scope="module")
def model() -> Any:
    return asset.model()


class _Batch:
    """Passes whose seconds and tokens are given: `passes` has both for one after the other, over and over."""

    def __init__(self, requests: Sequence[Request], passes: Iterable[Made], tally: Tally, clock: list[float]) -> None:
        self.active, self._passes, self._tally, self._clock = list(requests), iter(passes), tally, clock

    def next(self) -> list[list[Chosen]]:
        made = next(self._passes)
        self._clock[0] += made.seconds
        self._tally.add(made.drafted, [made.kept])
        if made.drafted:
            self._tally.drafting.append(made.drafting / made.drafted)
        return [[Chosen(3, -1.0)] * (1 + made.kept) for _ in self.active]

    def drop_ended(self) -> None:
        self.active = [one for one in self.active if one.finish is None]


@dataclass(frozen=True)
class Machine:
    """What decoding costs: seconds of a step, a draft and each token that is checked beyond the first, in steps; each
    drafted token is kept by chance, and `found` is the share of passes for which there is a draft at all."""

    draft: float
    check: float
    kept: float
    found: float = 1.0
    step: float = 0.01

    def passes(self, count: int, seed: int = 0) -> Iterator[Made]:
        drawn = random.Random(seed)
        while True:
            drafted = count if drawn.random() < self.found else 0
            kept = next((place for place in range(drafted) if drawn.random() >= self.kept), drafted)
            drafting = drafted * self.draft * self.step
            yield Made(drafted, kept, drafting, drafting + self.step * (1 + drafted * self.check))

    def speedup(self, count: int) -> float:
        """What the formula gives, passes without a draft included."""
        tokens = sum(self.kept**place for place in range(count + 1))
        cost = self.found * (1 + count * (self.draft + self.check)) + 1 - self.found
        return (self.found * tokens + 1 - self.found) / cost

    def best(self) -> float:
        """The largest speed-up; 1 where none pays."""
        return max(map(self.speedup, range(preflight.MOST + 1)))


@dataclass(frozen=True)
class Made:
    """A pass."""

    drafted: int
    kept: int
    drafting: float
    seconds: float


GOOD, COSTLY, WRONG = Machine(0.1, 0.02, 0.8), Machine(0.6, 0.05, 0.5), Machine(0.1, 0.4, 0.3)
LOOKUP = Machine(0.0, 0.2, 0.1, found=0.9)
"""Looking drafts up at temperature 1 on a CPU: they cost nothing to make, much to check, and few are kept."""


@pytest.mark.parametrize(
    ("machine", "wish", "expected"),
    [
        (GOOD, None, "on"),
        (GOOD, 2, "on"),
        (COSTLY, None, "off"),
        (COSTLY, 8, "off"),
        (WRONG, None, "off"),
        (LOOKUP, None, "off"),
        (LOOKUP, 4, "off"),
    ],
)
def test_the_preflight_decides_by_what_it_measures(monkeypatch, machine, wish, expected):
    clock = [0.0]
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(preflight, "TOKENS", 400)
    requests = [Request([1], SamplingOptions(max_tokens=400, stop=("x",)), None, frozenset({3}), None)]

    def batch(copies: Sequence[Request], count: int, tally: Tally) -> _Batch:
        return _Batch(copies, machine.passes(count), tally, clock)

    found = preflight.measure(requests, lambda copies: batch(copies, 0, Tally()), batch, wish)
    assert found.cost == pytest.approx(machine.draft) and found.acceptance == pytest.approx(machine.kept, abs=0.15)
    assert found.verify == pytest.approx(1 + found.measured * machine.check) and found.step == pytest.approx(0.01)
    assert found.gain == pytest.approx(machine.speedup(found.measured), rel=0.25)
    assert bool(found.drafted) == (expected == "on") and str(found).startswith(expected)
    if found.drafted:
        assert found.drafted == wish or machine.speedup(found.drafted) > 0.95 * machine.best()
    assert requests[0].finish is None and requests[0].made == 0


def test_what_comes_in_runs_is_judged_by_the_clock(monkeypatch):
    """The formula takes what is kept for independent; here all of four drafted tokens is kept, or nothing."""
    clock = [0.0]
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[0])
    requests = [Request([1], SamplingOptions(max_tokens=400), None, frozenset(), None)]
    runs = [Made(4, 0, 0.0, 0.018)] * 5 + [Made(4, 4, 0.0, 0.018)]

    def batch(copies: Sequence[Request], count: int, tally: Tally) -> _Batch:
        return _Batch(copies, itertools.cycle(runs) if count else Machine(0, 0, 0).passes(0), tally, clock)

    found = preflight.measure(requests, lambda copies: batch(copies, 0, Tally()), batch, 4)
    assert found.gain is not None and found.gain < 1 and found.drafted == 0 and "gave 0." in str(found)


# While texts are made.


def _run(pace: Measured, machine: Machine, tokens: int, seed: int = 0) -> float:
    """Seconds that a text takes, beside what it takes without drafts."""
    streams = {count: machine.passes(count, seed) for count in range(preflight.MOST + 1)}
    made, seconds = 0, 0.0
    while made < tokens:
        asked = pace.count(1)
        found = next(streams[asked])
        pace.took(asked, Pass(found.drafted, found.seconds, found.drafting, [found.kept]))
        made, seconds = made + 1 + found.kept, seconds + found.seconds
    return seconds / (made * machine.step)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("machine", [COSTLY, WRONG, LOOKUP], ids=["costly", "wrong", "lookup"])
def test_drafts_that_lose_cost_next_to_nothing(machine, seed):
    mistaken = Preflight(0.0, 1.0, tested=30, kept=20, measured=4, drafted=4, step=machine.step)
    assert 1 / machine.speedup(4) > 1.2, "it is a loss"
    said: list[str] = []
    took = _run(Measured(4, 8, fixed=False, preflight=mistaken, say=said.append), machine, 600, seed)
    assert took < 1.1 and "off" in said[0]
    told = Preflight(0.0, 1.0, tested=30, kept=2, measured=4, drafted=0, step=machine.step)
    assert _run(Measured(4, 8, fixed=False, preflight=told), machine, 60, seed) == pytest.approx(1), "it said so"
    assert _run(Measured(4, 8, fixed=False, preflight=told), machine, 3000, seed) < 1.03


@pytest.mark.parametrize("fixed", [False, True])
def test_drafts_that_win_stay(fixed):
    pace = Measured(4, 8, fixed=fixed)
    took = _run(pace, GOOD, 3000)
    assert 1 / took > (0.93 if fixed else 0.95) * (GOOD.speedup(4) if fixed else GOOD.best())
    assert not fixed or pace.count(1) in (0, 4)


@pytest.mark.parametrize("speedup", [0.85, 0.95, 0.99, 1.1, 1.4])
def test_next_to_nothing_is_lost_and_most_of_a_gain_is_kept(speedup):
    """Near what drafts cost, chance decides whether they are used; over 12 texts it may take a hundredth."""
    tokens = sum(0.67**place for place in range(4))
    machine = Machine(0.1, (tokens / speedup - 1) / 3 - 0.1, 0.67)
    assert machine.speedup(3) == pytest.approx(speedup)
    doubt = Preflight(0.1, 1 + 3 * machine.check, 30, 20, measured=3, step=machine.step, gain=1.0, error=0.1)
    for found in (None, doubt):
        paces = [Measured(3, 3, fixed=True, preflight=found) for _ in range(12)]
        gains = [1 / _run(pace, machine, 3000, seed) for seed, pace in enumerate(paces)]
        assert sum(gains) / 12 > (0.985 if speedup < 1 else 1 + 0.5 * (speedup - 1))


def test_a_batch_that_rests_is_the_plain_one(model):
    """Nothing of a draft runs beside it, not even its prompt; rest goes by as if its passes had been counted."""
    said: list[str] = []
    part = Speculative(SpeculativeConfig(draft="given"), model, draft=random_draft(), say=said.append)
    part.preflights[1, True] = Preflight(0.1, 3.0, 100, 0, measured=3, step=1e-3, gain=0.3, error=0.05)
    engine, options = Engine(model, draft=part), SamplingOptions(max_tokens=40, ignore_end=True)
    batches = [part.begin(engine._target(), [engine.request([5, 9], options)]) for _ in range(52)]
    assert [isinstance(one, EagerBatch) for one in batches] == [True] * 51 + [False], "2048 passes are 51.2 texts"
    assert part.tally.passes == 0
    engine.generate([[5, 9]], SamplingOptions(max_tokens=8, ignore_end=True))
    assert part._paces[1, True].count(1) == 3, "what was left has gone by, token for token"


def test_a_batch_in_graphs_drafts_all_the_time_or_never():
    pace = Measured(3, 3, fixed=True, preflight=Preflight(0.1, 1.5, 30, 20, measured=3, step=0.01, gain=1.0, error=0.1))
    assert pace.rests(1, 40, whole=True) and pace.rests(1, 40, whole=True), "64 passes"
    assert not pace.rests(1, 40, whole=True) and pace.steady(1) == 3
    for _ in range(40):
        pace.took(3, Pass(3, 0.03, 0.003, [0]))
    assert pace.rests(1, 40 * 128 - 1, whole=True), "found out after 4 passes, and paid for all 40"
    assert pace.rests(1, 40, whole=True) and not pace.rests(1, 40, whole=True)


def test_drafts_are_tried_again_and_rest_again():
    """A text that changes: drafts lose, win, lose."""
    said: list[str] = []
    pace = Measured(4, 4, fixed=True, say=said.append)
    _run(pace, WRONG, 400)
    later = _run(pace, GOOD, 3000)
    assert 1 / later > 0.85 * GOOD.speedup(4)
    _run(pace, WRONG, 400)
    assert [one.split(":")[0].split()[-1] for one in said] == ["off", "on", "off"]


def test_a_busy_moment_does_not_turn_drafts_off():
    pace, drawn = Measured(4, 4, fixed=True), random.Random(1)
    passes, rests = GOOD.passes(4), 0
    for _ in range(500):
        asked = pace.count(1)
        found = next(passes) if asked else Made(0, 0, 0.0, GOOD.step)
        busy = 30.0 if drawn.random() < 0.03 else 1.0
        pace.took(asked, Pass(found.drafted, busy * found.seconds, found.drafting, [found.kept]))
        rests += asked == 0
    assert rests < 20


def test_batches_of_other_sizes_are_judged_by_themselves():
    pace = Measured(4, 4, fixed=True)
    for rows, machine in ((1, GOOD), (8, WRONG)):
        passes = machine.passes(4)
        for _ in range(60):
            asked = pace.count(rows)
            found = next(passes) if asked else Made(0, 0, 0.0, machine.step)
            pace.took(asked, Pass(found.drafted, found.seconds, found.drafting, [found.kept] * rows))
    assert pace.count(1) == 4 and pace.count(8) == 0 == pace.count(9) and pace.count(64) == 0


def test_a_draft_that_is_never_right_is_turned_off(model):
    said: list[str] = []
    config = SpeculativeConfig(draft="given", tokens="auto")
    part = Speculative(config, model, asset.tokenizer(), draft=random_draft(), say=said.append)
    options = SamplingOptions(max_tokens=preflight.TOKENS, ignore_end=True)
    assert made_by(Engine(model, draft=part), asset_prompts()[:1], options) == made_by(
        Engine(model), asset_prompts()[:1], options
    )
    assert len(said) == 1 and "off, it would not surely pay" in said[0] and part.tally.passes == 0
    assert str(part) == "given: not used" and part.document()["preflights"][0]["drafted"] == 0
    few = SamplingOptions(max_tokens=4, ignore_end=True)
    Engine(model, draft=part).generate(asset_prompts()[:2], few)
    assert len(said) == 1, "a few tokens are not worth a measurement"


def test_verify_costs_are_read_off_a_line():
    found = Preflight(cost=0.1, verify=1.4, tested=100, kept=80, measured=4)
    assert [found.verify_of(count) for count in (0, 2, 4)] == pytest.approx([1, 1.2, 1.4])
    assert found.best() == best_drafted(0.8, 0.1, found.verify_of, preflight.MOST)
    assert Preflight(cost=0.1, verify=0.5, tested=100, kept=10, measured=4).best() == 0, (
        "no pass is cheaper than a step"
    )


def test_a_draft_is_dropped_in_the_middle_of_a_text(model):
    said: list[str] = []
    config = SpeculativeConfig(draft="given", tokens=4)
    part = Speculative(config, model, asset.tokenizer(), draft=random_draft(), say=said.append)
    part.preflights[1, True] = Preflight(0.0, 1.0, tested=30, kept=20, measured=4, drafted=4, step=1e-6)
    options = SamplingOptions(max_tokens=40, ignore_end=True)
    found = made_by(Engine(model, draft=part), asset_prompts()[:1], options)
    assert found == made_by(Engine(model), asset_prompts()[:1], options)
    assert part.tally.passes <= 17 and len(said) == 1 and "off" in said[0], "a step was said to take a microsecond"
