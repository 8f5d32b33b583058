"""Learning rates by hand, and properties that hold for every setting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hayless.train.schedule import rate
from hayless.train.settings import ScheduleSettings


def curve(total, **options):
    return [rate(ScheduleSettings(**options), step, total) for step in range(total)]


def test_cosine_by_hand():
    found = curve(6, shape="cosine", warmup=0.3, floor=0.2)
    falling = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * done / 4)) for done in (1, 2, 3, 4)]
    assert found == pytest.approx([0.5, 1.0, *falling])


def test_wsd_by_hand():
    assert curve(10, shape="wsd", warmup=0.2, decay=0.4, floor=0.0) == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    )


def test_constant_by_hand():
    assert curve(4, shape="constant", warmup=0.5) == pytest.approx([0.5, 1, 1, 1])


@given(
    shape=st.sampled_from(["cosine", "wsd", "constant"]),
    total=st.integers(1, 200),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0.01, 1),
    floor=st.floats(0, 1),
)
def test_rises_once_then_never_rises_and_ends_at_the_floor(shape, total, warmup, decay, floor):
    found = curve(total, shape=shape, warmup=warmup, decay=decay, floor=floor)
    rise = math.ceil(warmup * total)
    assert all(0 <= share <= 1 for share in found)
    assert all(share > 0 for share in found[:rise])
    assert found[:rise] == sorted(found[:rise])
    assert found[max(0, rise - 1) :] == sorted(found[max(0, rise - 1) :], reverse=True)
    if shape != "constant" and rise < total:
        assert found[-1] == pytest.approx(floor)
