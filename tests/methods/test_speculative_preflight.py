"""The preflight turns drafts off where they would lose; its clock is set by the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.request import Request
from hayless.methods.decoding.speculative import preflight
from hayless.methods.decoding.speculative.config import SpeculativeConfig
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
    """Takes `seconds` for a pass that gives `made` tokens."""

    def __init__(
        self, requests: Sequence[Request], seconds: float, made: int, tally: Tally | None, clock: list[float]
    ) -> None:
        self.active, self._seconds, self._made, self._tally, self._clock = list(requests), seconds, made, tally, clock

    def next(self) -> list[list[tuple[int, float]]]:
        self._clock[0] += self._seconds
        return [[(3, -1.0)] * self._made for _ in self.active]

    def drop_ended(self) -> None:
        self.active = [one for one in self.active if one.finish is None]


@pytest.mark.parametrize(
    ("cost", "verify", "kept", "wish", "expected"),
    [
        (0.1, 0.02, 0.8, None, "on"),
        (0.6, 0.05, 0.5, None, "off"),
        (0.1, 0.4, 0.3, None, "off"),
        (0.1, 0.02, 0.8, 2, "on"),
        (0.5, 0.2, 0.5, 8, "off"),
    ],
)
def test_the_preflight_decides_by_what_it_measures(monkeypatch, cost, verify, kept, wish, expected):
    """`cost` of a draft and `verify` of each token checked beyond the first, in steps; `kept` of drafted tokens."""
    clock = [0.0]
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[0])
    requests = [Request([1], SamplingOptions(max_tokens=400, stop=("x",)), None, frozenset({3}), None)]

    def speculative(copies: Sequence[Request], count: int, tally: Tally) -> _Batch:
        tally.drafting.append(cost)
        batch = _Batch(copies, count * cost + 1 + count * verify, 1, tally, clock)
        take, passes = batch.next, iter(range(10_000))

        def following() -> list[list[tuple[int, float]]]:
            tally.drafted += count
            tally.tested += 100
            tally.kept += round(100 * kept)
            next(passes)
            return take()

        batch.next = following  # type: ignore[method-assign]
        return batch

    found = preflight.measure(requests, lambda copies: _Batch(copies, 1.0, 1, None, clock), speculative, wish)
    assert found.cost == pytest.approx(cost) and found.acceptance == pytest.approx(kept)
    assert found.verify == pytest.approx(1 + found.measured * verify)
    assert bool(found.drafted) == (expected == "on") and str(found).startswith(expected)
    if wish is not None and found.drafted:
        assert found.drafted == wish
    if wish is None and found.drafted:
        assert found.drafted == best_drafted(kept, cost, lambda drafted: 1 + verify * drafted, preflight.MOST)
    assert requests[0].finish is None and requests[0].made == 0


def test_a_draft_that_is_never_right_is_turned_off(model):
    said: list[str] = []
    config = SpeculativeConfig(draft="given", tokens="auto")
    part = Speculative(config, model, asset.tokenizer(), draft=random_draft(), say=said.append)
    options = SamplingOptions(max_tokens=preflight.TOKENS, ignore_end=True)
    assert made_by(Engine(model, draft=part), asset_prompts()[:1], options) == made_by(
        Engine(model), asset_prompts()[:1], options
    )
    assert len(said) == 1 and "off, it would not pay" in said[0] and part.tally.passes == 0
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


def test_what_is_drafted_follows_what_is_kept():
    found = Preflight(cost=0.1, verify=1.2, tested=10, kept=7, measured=4, drafted=4)
    assert found.adapted(Tally(tested=200, kept=140)).drafted == 4, "another would hardly be faster"
    assert found.adapted(Tally(tested=200, kept=190)).drafted == preflight.MOST
    assert found.adapted(Tally(tested=200, kept=20)).drafted == 0


def test_drafts_that_stop_paying_are_turned_off(model):
    said: list[str] = []
    part = Speculative(
        SpeculativeConfig(draft="given"), model, asset.tokenizer(), draft=random_draft(), say=said.append
    )
    key = (1, True)
    part.preflights[key] = Preflight(cost=0.1, verify=1.1, tested=20, kept=8, measured=4, drafted=4)
    options = SamplingOptions(max_tokens=40, ignore_end=True)
    engine = Engine(model, draft=part)
    assert (
        engine.generate(asset_prompts()[:1], options)[0].tokens
        == Engine(model).generate(asset_prompts()[:1], options)[0].tokens
    )
    passes = part.tally.passes
    assert passes == 40 and not said
    engine.generate(asset_prompts()[:1], options)
    assert part.tally.passes == passes and "off" in said[0] and part.preflights[key].drafted == 0
