"""The fast k-means against the slow one, and the cases in which k-means is easily wrong."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.methods.quantize.kmeans import clustering, reference, vectors
from hayless.methods.quantize.kmeans.clustering import palettize


def test_lloyd_on_a_line_is_lloyd() -> None:
    values = torch.randn(3, 257, generator=torch.Generator().manual_seed(0))
    line = clustering._Line.of(values).with_zeros()
    start = clustering._even(line, 7)
    for iterations in (1, 2, 50):
        centroids, _ = clustering._lloyd(line, start, iterations)
        for row in range(3):
            expected, _ = reference.lloyd(values[row, :, None].double(), start[row, :, None], iterations)
            torch.testing.assert_close(centroids[row], expected[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counted", [True, False])
def test_weighted_lloyd_on_a_line_is_lloyd(counted: bool) -> None:
    """Some values do not count at all, some hardly; zeros do or do not."""
    generator = torch.Generator().manual_seed(0)
    values, h = torch.randn(3, 257, generator=generator), torch.rand(3, 257, generator=generator) ** 8
    values[:, ::9] = 0
    h[:, ::7], h[1, 100:200] = 0, 1e-5
    line = clustering._Line.of(values, h)
    line = line.with_zeros() if counted else line
    start = clustering._even(line, 7)
    for iterations in (1, 2, 50):
        centroids, gain = clustering._lloyd(line, start, iterations)
        for row in range(3):
            kept = torch.full((257,), True) if counted else values[row] != 0
            x, importance = values[row, kept, None].double(), h[row, kept].double()
            expected, index = reference.lloyd(x, start[row, :, None], iterations, importance)
            torch.testing.assert_close(centroids[row], expected[:, 0], rtol=1e-8, atol=1e-8)
            lost = (importance * (x - expected[index]).square()[:, 0]).sum()
            torch.testing.assert_close((importance * x[:, 0].square()).sum() - lost, gain[row])


def test_what_counts_more_is_met_better_and_equal_importance_changes_nothing() -> None:
    values, h = torch.randn(2, 500, generator=torch.Generator().manual_seed(1)), torch.ones(2, 500)
    plain = palettize(values, 8, iterations=100, keep_zeros=True)
    torch.testing.assert_close(palettize(values, 8, iterations=100, keep_zeros=True, importance=3 * h)[0], plain[0])
    none = palettize(values, 8, iterations=100, keep_zeros=True, importance=0 * h)
    assert torch.equal(none[1], plain[1])
    h[values > 1] = 100

    def lost(books: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return (h * (books.gather(1, codes.long()) - values).square()).sum(1)

    weighted = palettize(values, 8, iterations=100, keep_zeros=True, importance=h)
    assert (lost(*weighted) < 0.75 * lost(*plain)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_value_takes_its_nearest_entry(dtype: torch.dtype) -> None:
    values = torch.randn(4, 301, generator=torch.Generator().manual_seed(1)).to(dtype)
    books, codes = palettize(values, 8, iterations=100, keep_zeros=False)
    assert books.dtype is dtype and codes.dtype is torch.uint8
    for row in range(4):
        expected = reference.nearest_of(values[row, :, None].double(), books[row, :, None].double())
        assert torch.equal(codes[row].long(), expected)


def test_centroids_are_means_once_they_stand_still() -> None:
    values = torch.randn(1, 999, dtype=torch.float32, generator=torch.Generator().manual_seed(2))
    books, codes = palettize(values, 16, iterations=10_000, keep_zeros=True)
    for index in range(16):
        torch.testing.assert_close(books[0, index], values[0][codes[0] == index].double().mean().float())


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.sampled_from([-3.5, -1.0, -1e-30, 0.0, 1e-38, 0.1, 0.10000001, 2.0, 7e8]), min_size=1, max_size=40),
    st.integers(1, 4),
    st.booleans(),
)
def test_few_distinct_values_come_back_exactly(values: list[float], bits: int, keep_zeros: bool) -> None:
    row = torch.tensor([values])
    books, codes = palettize(row, 2**bits, iterations=50, keep_zeros=keep_zeros)
    back = books.gather(1, codes.long())
    if len(set(row[0].tolist())) <= 2**bits:
        assert torch.equal(back, row)
    if keep_zeros:
        assert torch.equal(back == 0, row == 0)
    assert (back.min() >= row.min() and back.max() <= row.max()) or keep_zeros


def test_neighbouring_floats_are_told_apart() -> None:
    low = torch.tensor(0.1)
    row = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))]).repeat(5)[None]
    books, codes = palettize(row, 2, iterations=5, keep_zeros=True)
    assert torch.equal(books.gather(1, codes.long()), row)


def test_a_constant_and_an_empty_row() -> None:
    books, codes = palettize(torch.full((2, 9), 0.3), 4, iterations=5, keep_zeros=True)
    assert torch.equal(books.gather(1, codes.long()), torch.full((2, 9), 0.3))
    books, codes = palettize(torch.zeros(2, 0), 4, iterations=5, keep_zeros=True)
    assert books.shape == (2, 4) and codes.shape == (2, 0)


def test_zeros_stay_zeros_and_nothing_else_becomes_one() -> None:
    values = torch.randn(5, 400, generator=torch.Generator().manual_seed(3))
    values[torch.rand(5, 400, generator=torch.Generator().manual_seed(4)) < 0.7] = 0
    values[4] = values[4].abs()
    for levels in (2, 4, 16):
        books, codes = palettize(values, levels, iterations=100, keep_zeros=True)
        assert torch.equal(books.gather(1, codes.long()) == 0, values == 0)


@pytest.mark.parametrize("row", [[-1.0, 1.0, 0.0, 0.0, -2.0, 2.0], [-1.0, -1.0, 2.0, 7e8]])
def test_opposite_weights_never_average_to_a_zero(row: list[float]) -> None:
    values = torch.tensor([row])
    books, codes = palettize(values, 2, iterations=10, keep_zeros=True)
    assert torch.equal(books.gather(1, codes.long()) == 0, values == 0)


def test_groups_do_not_see_each_other() -> None:
    values = torch.randn(6, 50, generator=torch.Generator().manual_seed(5))
    values[2, :20] = 0
    together = palettize(values, 8, iterations=100, keep_zeros=True)
    for row in range(6):
        alone = palettize(values[row : row + 1], 8, iterations=100, keep_zeros=True)
        assert torch.equal(together[0][row], alone[0][0]) and torch.equal(together[1][row], alone[1][0])


def test_error_falls_with_bits() -> None:
    values = torch.randn(1, 5000, generator=torch.Generator().manual_seed(6))
    errors = []
    for bits in range(1, 9):
        books, codes = palettize(values, 2**bits, iterations=100, keep_zeros=True)
        errors.append(float((books.gather(1, codes.long()) - values).square().mean()))
    assert all(later < earlier / 2 for earlier, later in pairwise(errors))


def test_points_in_three_dimensions_are_clustered_as_the_reference_does() -> None:
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(7)) * 255
    start = reference.spread_start(points, 6, torch.Generator().manual_seed(0))
    expected, index = reference.lloyd(points, start, 40)
    centroids, found = vectors.cluster(points, 6, iterations=40, seed=0)
    torch.testing.assert_close(centroids, expected, rtol=1e-4, atol=1e-3)
    assert (found == index).float().mean() > 0.99


def test_fewer_points_than_colours() -> None:
    points = torch.tensor([[1.0, 2, 3], [1, 2, 3], [4, 5, 6]])
    centroids, index = vectors.cluster(points, 16, iterations=5, seed=0)
    assert torch.equal(centroids[index], points)
