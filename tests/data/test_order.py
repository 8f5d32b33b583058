"""Order: permutations without state, epochs, and exact shares of domains."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.data.order import Order, dealt, shuffled, turn, whole_weights


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_permutation(size, seed, epoch):
    assert sorted(shuffled(at, size, seed, epoch) for at in range(size)) == list(range(size))


def test_keys_give_different_and_unbiased_orders():
    orders = {tuple(shuffled(at, 50, seed, epoch) for at in range(50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    # Each of 5 places gets each of 5 values about 400 of 2,000 times: five standard deviations are 90.
    counts = [[0] * 5 for _ in range(5)]
    for seed in range(2000):
        for at in range(5):
            counts[at][shuffled(at, 5, seed)] += 1
    assert all(abs(count - 400) < 90 for row in counts for count in row)


def test_outside_of_the_range_is_refused():
    with pytest.raises(ValueError, match="outside"):
        shuffled(3, 3, 0)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_epoch_has_every_row_once(sizes, seed):
    order, total = Order(sizes, seed), sum(sizes)
    every = [(pool, index) for pool, size in enumerate(sizes) for index in range(size)]
    for epoch in range(3):
        assert sorted(order.at(number) for number in range(epoch * total, (epoch + 1) * total)) == every


def test_epochs_and_seeds_differ():
    order = [Order([40], seed) for seed in (0, 1)]
    epochs = {tuple(order[0].at(number) for number in range(start, start + 40)) for start in (0, 40, 80)}
    assert len(epochs) == 3
    assert [order[0].at(number) for number in range(40)] != [order[1].at(number) for number in range(40)]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any))
@settings(max_examples=60, deadline=None)
def test_domains_follow_their_shares(weights):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    counts = [0] * len(weights)
    period = sum(weights)
    for number in range(3 * period * 7):
        pool, before = turn(number, weights)
        assert counts[pool] == before
        counts[pool] += 1
        assert all(
            abs(count - (number + 1) * share) < len(weights) for count, share in zip(counts, shares, strict=True)
        )
    rows = 3 * period * 7
    assert all(abs(count - rows * share) < len(weights) for count, share in zip(counts, shares, strict=True))


def test_three_shares_by_hand():
    weights = whole_weights(["a", "b", "c"], {"a": 0.5, "b": 0.3, "c": 0.2})
    assert weights == [5, 3, 2]
    pools = [turn(number, weights)[0] for number in range(1000)]
    assert [pools.count(pool) for pool in range(3)] == [500, 300, 200]


def test_a_pool_with_a_share_has_epochs_of_its_own():
    order = Order([3, 100], 0, [(0, [1, 1])])
    small = [index for pool, index in map(order.at, range(60)) if pool == 0]
    assert len(small) == 30
    assert all(sorted(small[at : at + 3]) == [0, 1, 2] for at in range(0, 30, 3))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_dealt_counts_the_turns(weights, rows):
    pools = [turn(number, weights)[0] for number in range(rows)]
    assert dealt(rows, weights) == [pools.count(pool) for pool in range(len(weights))]


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)), max_size=4
    ),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_shares_that_change_repeat_no_row_before_all_of_its_pool_have_come(spans, sizes, seed):
    stages, start = [(0, [1, 1, 1])], 0
    for span, weights in spans:
        start += span
        stages.append((start, weights))
    order = Order(sizes, seed, stages)
    numbers = range(start + 50)
    found = [order.at(number) for number in numbers]
    for pool, size in enumerate(sizes):
        rows = [index for one, index in found if one == pool]
        for epoch in range(0, len(rows) - size + 1, size):
            assert sorted(rows[epoch : epoch + size]) == list(range(size))
    for (begin, weights), end in zip(stages, [*(stage[0] for stage in stages[1:]), start + 50], strict=True):
        pools = [found[number][0] for number in range(begin, end)]
        assert [pools.count(pool) for pool in range(3)] == dealt(end - begin, weights)
    # What came before a change does not depend on it.
    assert [Order(sizes, seed, stages[:1]).at(number) for number in range(stages[1][0] if spans else 50)] == found[
        : stages[1][0] if spans else 50
    ]


def test_stages_come_in_order():
    with pytest.raises(ValueError, match="not 0"):
        Order([3], 0, [(4, [1])])
    with pytest.raises(ValueError, match="cannot follow"):
        Order([3], 0, [(0, [1]), (0, [1])])


def test_proportions_of_no_domain_are_refused():
    with pytest.raises(RequestError, match="Did you mean 'python'"):
        whole_weights(["python", "c"], {"pyton": 1.0})
    with pytest.raises(RequestError, match="zero"):
        whole_weights(["python"], {"python": 0.0})
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match=r"proportions\.python"):
            whole_weights(["python"], {"python": wrong})
    assert whole_weights(["a", "b"], {"b": 7}) == [0, 1]
