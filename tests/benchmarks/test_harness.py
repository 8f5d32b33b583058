"""The harness rejects what is not the same work, charges each contender what it takes, and invents no difference."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hayless.core import atomic
from hayless.core.errors import RequestError, WorkError
from hayless.core.measurement import Goal
from hayless.study.bench import runner, spec
from hayless.study.bench.gate import as_exact, close, plain, rejected
from hayless.study.bench.results import Row, write
from hayless.study.bench.results import plain as as_json
from hayless.study.bench.spec import (
    PEAK,
    RATE,
    TIME,
    Bound,
    Contender,
    Figure,
    Limit,
    Prepared,
    Spec,
    Unavailable,
    Work,
)
from hayless.study.bench.timing import HostClock, in_turn, ratio
from tests.benchmarks import allocators


class Clock:
    """Time that passes only when somebody says so, each time a little more or less."""

    def __init__(self) -> None:
        self.time = 0.0
        self._random = random.Random(0)

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds * self._random.uniform(0.95, 1.1)


@pytest.fixture
def clock(monkeypatch):
    """A clock on which `time.sleep` sleeps."""
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def sleeper(name: str, seconds: float, answer: float = 1.0, **more: object) -> Contender:
    return Contender(name, lambda: Prepared(lambda: time.sleep(seconds), lambda: {"loss": [answer]}), **more)


def rows_of(clock: Clock, *contenders: Contender, **more: object) -> list[Row]:
    """The rows of one work without peaks."""
    settings = {"same": close(relative=0.01), "piece": "step", "repeats": 40, "peaks": False, **more}
    return runner.run(
        Spec("test", [Work("sleeping", contenders, **settings)]),
        Path(__file__),
        stopwatch=HostClock(now=clock),
        say=lambda line: None,
    )


def test_a_contender_that_computes_something_else_is_a_row_with_the_reason_and_no_time(clock):
    fast_but_wrong = sleeper("wrong", 1e-4, answer=1.02, goals={TIME: Goal(op=">=", against="peer", ratio=2)})
    peer, right, wrong = rows_of(clock, sleeper("peer", 1e-3), sleeper("right", 1e-3, answer=1.009), fast_but_wrong)
    assert peer.spread and right.spread
    assert wrong.spread is None and wrong.samples == ()
    assert "does not compute the same as peer: loss is off by up to 0.02 (1.02 instead of 1)" in wrong.reason
    found = as_json(wrong, [peer, right, wrong])
    assert found["value"] is None and found["met"] is False and "ratio" not in found


def test_a_sleep_added_to_a_contender_shows_in_its_row(clock):
    plain_row, slow = rows_of(clock, sleeper("plain", 10e-3), sleeper("slow", 15e-3))
    assert plain_row.spread.median == pytest.approx(10, rel=0.1) and slow.spread.median == pytest.approx(15, rel=0.1)
    found = as_json(slow, [plain_row, slow])
    assert found["ratio"] == pytest.approx(2 / 3, rel=0.05) and found["ratio_high"] < 0.75


def test_identical_contenders_come_out_at_one_within_the_printed_noise(clock):
    rows = rows_of(clock, sleeper("one", 1e-3), sleeper("two", 1e-3))
    found = as_json(rows[1], rows)
    assert found["ratio_low"] <= 1 <= found["ratio_high"]
    assert found["ratio"] == pytest.approx(1, abs=0.03)
    assert 0 < found["ratio_high"] - found["ratio_low"] < 0.1


def test_noise_that_falls_on_a_round_falls_out_of_a_paired_ratio():
    noise = np.random.default_rng(0).uniform(1, 3, 40)
    value, low, high = ratio(2 * noise, noise, paired=True)
    assert value == low == high == 2
    _, low, high = ratio(2 * noise, noise, paired=False)
    assert high - low > 0.2


def test_contenders_take_turns_and_none_always_follows_the_same():
    order: list[str] = []
    timed = {name: lambda _, name=name: order.append(name) or 0.0 for name in "abc"}
    found, failed = in_turn(timed, HostClock(now=lambda: 0.0), dict.fromkeys("abc", 3))
    assert "".join(order) == "abcbcacab" and found == {name: [0.0] * 3 for name in "abc"} and not failed


def test_a_slow_one_may_have_fewer_repeats(clock):
    slow, fast = rows_of(clock, sleeper("slow", 2.0, repeats=3), sleeper("fast", 1.0))
    assert (len(slow.samples), len(fast.samples)) == (3, 40)
    found = as_json(fast, [slow, fast])
    assert found["ratio"] == pytest.approx(2, rel=0.1) and found["ratio_low"] < 2 < found["ratio_high"] + 0.1


def test_times_are_of_a_piece_and_rates_of_its_tokens(clock):
    row, rate = rows_of(clock, sleeper("one", 64e-3), pieces=64, tokens=8)
    assert (row.metric, row.unit) == (TIME, "ms/step") and row.spread.median == pytest.approx(1, rel=0.1)
    assert (rate.metric, rate.unit) == (RATE, "tokens/s") and rate.spread.median == pytest.approx(8000, rel=0.1)
    assert rate.spread.median == pytest.approx(8e3 / row.spread.median, rel=1e-3)


def test_missing_packages_and_failures_are_rows_with_the_reason_and_leave_the_others(clock):
    def broken() -> Prepared:
        raise ValueError("it broke\nin many lines")

    def breaks_later() -> Prepared:
        return Prepared(lambda: 1 / 0, lambda: {"loss": [1.0]})

    def breaks_in_the_end() -> Prepared:
        turns = iter(range(5))
        return Prepared(lambda: 1 / (4 - next(turns)), lambda: {"loss": [1.0]})

    absent = sleeper("absent", 1.0, needs=("no_such_package",))
    broken_ones = (Contender("broken", broken), Contender("late", breaks_later), Contender("last", breaks_in_the_end))
    rows = rows_of(clock, absent, *broken_ones, sleeper("good", 1.0))
    assert [row.reason for row in rows] == [
        "no_such_package not installed",
        "ValueError: it broke",
        "ZeroDivisionError: division by zero",
        "ZeroDivisionError: division by zero",
        "",
    ]
    assert rows[4].spread and rows[3].spread is None and "ratio" not in as_json(rows[4], rows)


def test_a_part_that_does_not_count_is_taken_off_and_other_figures_are_rows(clock):
    def prepare() -> Prepared:
        read = lambda: time.sleep(50e-3)  # noqa: E731
        figures = lambda: [Figure("file", "B", 7.0)]  # noqa: E731
        return Prepared(lambda: (read(), time.sleep(10e-3)), lambda: {"loss": [1.0]}, less=read, figures=figures)

    goal = Goal(op="<=", value=5.0)
    time_row, file_row = rows_of(clock, Contender("one", prepare, goals={"file": goal}))
    assert time_row.spread.median == pytest.approx(10, rel=0.5)
    assert (file_row.metric, file_row.spread.median) == ("file", 7.0)
    assert as_json(file_row, [time_row, file_row])["met"] is False


def test_a_work_that_is_not_timed_has_figures_and_reasons_only(clock):
    def sized() -> Prepared:
        return Prepared(lambda: None, lambda: {"loss": [1.0]}, figures=lambda: [Figure("size", "B", 7.0)])

    contenders = [Contender("ours", sized), sleeper("wrong", 1.0, answer=2.0)]
    work = Work("w", contenders, close(absolute=1e-3), "file", repeats=1, warmup=0, peaks=False, timed=False)
    ours, wrong = runner.run(Spec("test", [work]), Path(__file__), stopwatch=HostClock(clock), say=lambda line: None)
    assert (ours.metric, ours.spread and ours.spread.median, wrong.spread) == ("size", 7.0, None)
    assert "loss" in wrong.reason


def test_figures_that_say_nothing_of_each_other_are_not_compared():
    def sized(size: float) -> Contender:
        figures = [Figure("difference", "bits/byte", size)]
        return Contender(f"{size}", lambda: Prepared(lambda: None, lambda: {"loss": [1.0]}, figures=lambda: figures))

    work = partial(Work, same=close(), piece="model", repeats=1, warmup=0, peaks=False, timed=False)
    for compared in (True, False):
        spec = Spec("test", [work("w", [sized(-1.0), sized(2.0)], compared=compared)])
        rows = runner.run(spec, Path(__file__), say=lambda line: None)
        assert [("ratio" in as_json(row, rows)) for row in rows] == [False, compared]


def test_a_limit_is_a_row_and_each_goal_has_its_own(clock):
    goals = (Goal(op=">=", against="limit", ratio=0.4), Goal(op=">=", against="peer", ratio=3))
    limit = Limit("limit", lambda: Bound(5e-3, "5 of 1"))
    rows = rows_of(clock, sleeper("peer", 20e-3), sleeper("ours", 10e-3, goals={TIME: goals}), limit=limit)
    assert [row.contender for row in rows] == ["limit", "peer", "ours", "ours"]
    assert (rows[0].spread.median, rows[0].note) == (5.0, "5 of 1")
    share, times = (as_json(row, rows) for row in rows[2:])
    assert share["ratio"] == pytest.approx(0.5, rel=0.1) and share["met"] and share["against"] == "limit"
    assert times["ratio"] == pytest.approx(2, rel=0.1) and not times["met"]

    def absent() -> Bound:
        raise Unavailable("no device to measure")

    rows = rows_of(clock, sleeper("ours", 1e-3, goals={TIME: goals[0]}), limit=Limit("limit", absent))
    assert rows[0].reason == "no device to measure" and as_json(rows[1], rows)["met"] is False


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"error": [0.01, -0.02], "shortfall": [0.0, 0.05]}, ""),
        ({"error": [0.05, -0.05], "shortfall": [0.0, 0.0]}, "0.05 off float32, where the reference is 0.0158 off"),
        ({"error": [0.0, 0.0], "shortfall": [0.0, 0.2]}, "0.2 short of the best"),
        ({"error": [0.0, float("nan")], "shortfall": [0.0, 0.0]}, "not every figure is finite"),
        ({"error": [0.0, 0.0]}, "answers no shortfall"),
    ],
)
def test_sixteen_bits_may_be_as_far_from_float32_as_the_reference_is(other, why):
    reference = plain({"error": [0.01, 0.02], "shortfall": [0.0, 0.01]})
    found = as_exact()(reference, plain(other))
    assert bool(found) == bool(why) and why in found


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"a": [1.0, 2.0]}, ""),
        ({"a": [1.0, 2.3]}, "off by up to 0.3"),
        ({"a": [1.0]}, "shape"),
        ({"a": [1.0, float("nan")]}, "not finite"),
        ({"b": [1.0, 2.0]}, "instead of a"),
    ],
)
def test_answers_are_compared_name_by_name(other, why):
    found = close(absolute=0.1, relative=0.05)(plain({"a": torch.tensor([1, 2])}), plain(other))
    assert bool(found) == bool(why) and why in found


def test_a_reference_that_is_not_finite_lets_nobody_through():
    answers = {name: plain({"a": [value]}) for name, value in (("first", float("inf")), ("second", 1.0))}
    assert rejected(answers, close()).keys() == {"first", "second"}


def test_results_say_what_was_reached_of_a_goal(tmp_path):
    rows = [
        Row("w", "peer", PEAK, "B", runner.Spread(100.0, 100.0, 100.0)),
        Row("w", "ours", PEAK, "B", runner.Spread(80.0, 80.0, 80.0), Goal(op=">=", against="peer", ratio=1.2)),
        Row("w", "ours", RATE, "x/s", runner.Spread(5.0, 4.0, 6.0), Goal(op=">=", value=6.0), better="higher"),
    ]
    write(tmp_path / "r.json", "spec", rows)
    content = atomic.read_json(tmp_path / "r.json")
    assert list(content) == ["spec", "machine", "versions", "date", "rows"]
    _, peak, rate = content["rows"]
    assert (peak["ratio"], peak["met"], peak["goal"]) == (1.25, True, {"op": ">=", "against": "peer", "ratio": 1.2})
    assert (rate["met"], rate["goal"]) == (False, {"op": ">=", "value": 6.0}) and "ratio" not in rate


@pytest.mark.slow
def test_a_peak_is_the_process_s_own():
    ballast = torch.ones(2 * allocators.MUCH, dtype=torch.uint8)
    path = Path(allocators.__file__)
    rows = runner.run(spec.load(path), path, say=lambda line: None)
    del ballast
    peaks = {row.contender: row for row in rows if row.metric == PEAK}
    assert peaks["little"].spread.median < 0.3 * allocators.MUCH
    assert 0.9 * allocators.MUCH < peaks["much"].spread.median < 1.3 * allocators.MUCH
    assert [row.metric for row in rows if row.spread] == [TIME, PEAK, TIME, PEAK]


def test_contenders_that_work_alone_are_judged_by_what_their_processes_answer(monkeypatch):
    def alone(path: Path, work: Work, contender: Contender, *, timed: bool) -> dict[str, object]:
        if contender.name == "dies":
            raise WorkError("was killed by SIGKILL.\n  | the end of what it printed")
        answer = [2.0] if contender.name == "wrong" else [1.0]
        times = {"seconds": [0.001, 0.001], "peak_bytes": 7, "note": "its own"}
        figures = [{"metric": "file", "unit": "B", "value": 3.0, "better": "lower"}]
        return {"answer": {"loss": answer}, **times, "figures": figures}

    monkeypatch.setattr(runner.worker, "alone", alone)
    work = Work("w", [sleeper(name, 1.0) for name in ("peer", "wrong", "dies")], same=close(), piece="step")
    rows = runner.run(Spec("test", [work], turns="alone"), Path(__file__), say=lambda line: None)
    assert [(row.contender, row.metric, row.spread and row.spread.median) for row in rows] == [
        ("peer", TIME, 1.0),
        ("peer", "file", 3.0),
        ("peer", PEAK, 7.0),
        ("wrong", TIME, None),
        ("wrong", PEAK, None),
        ("dies", TIME, None),
        ("dies", PEAK, None),
    ]
    assert (
        "2 instead of 1" in rows[3].reason and rows[5].reason == "was killed by SIGKILL. (the end of what it printed)"
    )


def test_specs_that_are_not_there_or_declare_nothing_are_refused(tmp_path):
    (tmp_path / "empty.py").write_text("SPEC = 1\n", encoding="utf-8")
    with pytest.raises(RequestError, match="declares no benchmark"):
        spec.load(tmp_path / "empty.py")
    with pytest.raises(RequestError, match="There are: empty"):
        spec.load(tmp_path / "other.py")
    with pytest.raises(RequestError, match="little, much"):
        allocators.SPEC.works[0].contender("none")
