"""k-means of numbers, exactly assigned and fast: on a line, a cluster is a run of the sorted values.

Lloyd's iteration (Lloyd 1982) needs, on sorted values, only where each run ends (a binary search for the midpoints
between centroids) and the sum of each run (a difference of two prefix sums). An iteration costs O(k log n) instead of
O(k n), so several starts can be tried and the best kept. Many groups of values are clustered at once.

Starts: the quantiles; evenly spaced values (the linear start of Deep Compression, arXiv:1510.00149, section 3.2); and
as dense as the cube root of the values' density (Panter and Dite 1951), near the best for many centroids. None is
random. Where values count by their importance, runs are the same and sums are weighted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_BINS = 512
"""Of the histogram from which a start takes the density."""


def palettize(
    values: Tensor, levels: int, *, iterations: int, keep_zeros: bool, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A codebook for each row of `values` (groups, n) and the index of the nearest entry for each value.

    Returns codebooks (groups, levels) in the dtype of `values` and uint8 indices (groups, n); computed in float32 and
    float64. A row of at most `levels` distinct values gets exactly these. With `keep_zeros` zeros, and only zeros,
    become zeros: a row that holds some has a 0 of its own as its codebook's first entry. The other entries ascend, and
    a value midway between two of them takes the lower. With `importance` (groups, n), not negative, a centroid is the
    mean of its values weighted by it, and Σ importance · error² is what is made small; a row without any counts alike.
    """
    line = _Line.of(values, importance)
    books = torch.zeros(values.shape[0], levels, dtype=torch.float64, device=values.device)
    if values.numel() == 0:
        return books.to(values.dtype), torch.zeros_like(values, dtype=torch.uint8)
    exact = line.distinct() <= levels
    zeroed = (line.zeros > 0) & keep_zeros & ~exact
    plain = ~exact & ~zeroed
    if exact.any():
        books[exact] = line.rows(exact).values_once(levels)
    if plain.any():
        books[plain] = _best(line.rows(plain).with_zeros(), levels, iterations)
    if zeroed.any():
        books[zeroed, 1:] = _best(line.rows(zeroed), levels - 1, iterations)
    rounded = books.to(values.dtype)
    # A centroid between small weights of both signs must not pass for the zero of pruned weights.
    spare = ~exact[:, None] & (rounded == 0) & keep_zeros
    spare[zeroed, 0] = False
    rounded.masked_fill_(spare, torch.finfo(values.dtype).tiny)
    return rounded, _assign(values.float(), rounded.float(), zeroed)


def _assign(values: Tensor, books: Tensor, zeroed: Tensor) -> Tensor:
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    codes[~zeroed] = _nearest(values[~zeroed], books[~zeroed])
    if zeroed.any():
        found = _nearest(values[zeroed], books[zeroed, 1:]) + 1
        codes[zeroed] = found.masked_fill_(values[zeroed] == 0, 0)
    return codes


@dataclass(frozen=True, slots=True)
class _Line:
    """Rows of sorted values with what Lloyd's iteration asks of them. `zeros` exact zeros of each row do not count.

    `sums` are of all values before a place. Where values count by their importance they are of the products of both,
    and `masses` are sums of the importance.
    """

    ordered: Tensor
    sums: Tensor
    first_zero: Tensor
    zeros: Tensor
    masses: Tensor | None = None

    @staticmethod
    def of(values: Tensor, importance: Tensor | None = None) -> _Line:
        masses = None
        if importance is None:
            ordered = _sorted(values.float().contiguous())
            sums = _sums(ordered)
        else:
            ordered, order = values.float().sort(dim=1)
            mass = importance.double().gather(1, order)
            mass = torch.where(mass.sum(1, keepdim=True) > 0, mass, 1.0)
            sums, masses = _sums(mass * ordered), _sums(mass)
        zero = torch.zeros(values.shape[0], 1, device=values.device)
        first = torch.searchsorted(ordered, zero)
        zeros = torch.searchsorted(ordered, zero, right=True) - first
        return _Line(ordered, sums, first, zeros.squeeze(1), masses)

    def rows(self, which: Tensor) -> _Line:
        if which.all():
            return self
        masses = None if self.masses is None else self.masses[which]
        return _Line(self.ordered[which], self.sums[which], self.first_zero[which], self.zeros[which], masses)

    def with_zeros(self) -> _Line:
        """The same rows with their zeros counted."""
        return replace(self, zeros=torch.zeros_like(self.zeros))

    def distinct(self) -> Tensor:
        return (self.ordered.diff(dim=1) != 0).sum(dim=1) + 1

    def values_once(self, levels: int) -> Tensor:
        """The distinct values of each row in order, the last repeated up to `levels`."""
        rank = torch.zeros(self.ordered.shape, dtype=torch.int64, device=self.ordered.device)
        rank[:, 1:] = (self.ordered.diff(dim=1) != 0).cumsum(dim=1)
        found = self.ordered[:, -1:].double().repeat(1, levels)
        return found.scatter_(1, rank, self.ordered.double())

    def counted(self, ends: Tensor) -> Tensor:
        """How many counted values lie before the positions `ends` of the sorted rows."""
        return ends - (ends - self.first_zero).clamp(min=0).minimum(self.zeros[:, None])

    def weighed(self, ends: Tensor) -> Tensor:
        """The importance of the counted values before the positions `ends`; how many they are where all count alike."""
        if self.masses is None:
            return self.counted(ends)
        last_zero = self.first_zero + self.zeros[:, None]
        of_zeros = self.masses.gather(1, ends.clamp(min=self.first_zero, max=last_zero))
        return self.masses.gather(1, ends) - (of_zeros - self.masses.gather(1, self.first_zero))

    def position(self, rank: Tensor) -> Tensor:
        """The position in the sorted row of the counted value of each rank."""
        return rank + torch.where(rank >= self.first_zero, self.zeros[:, None], 0)


def _best(line: _Line, levels: int, iterations: int) -> Tensor:
    """Centroids (groups, levels) of the start that ends with the least squared error."""
    best, score = None, None
    for start in (_quantiles(line, levels), _even(line, levels), _companded(line, levels)):
        centroids, gain = _lloyd(line, start, iterations)
        if best is None or score is None:
            best, score = centroids, gain
        else:
            better = gain > score
            best, score = torch.where(better[:, None], centroids, best), torch.where(better, gain, score)
    assert best is not None
    return best


def _lloyd(line: _Line, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Move centroids (groups, levels) to the means of their runs until they stand still.

    Also returns Σ n_j·c_j² a group, n_j being how much a run counts: the squared error is Σ x² less that, so more is
    better.
    """
    for _ in range(iterations):
        moved, counts = _means(line, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    means, counts = _means(line, centroids)
    return centroids, (counts * (2 * means * centroids - centroids.square())).sum(dim=1)


def _means(line: _Line, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each centroid's run and how much it counts; a run that does not keeps its centroid."""
    groups, length = line.ordered.shape
    ends = torch.searchsorted(line.ordered, _midpoints(centroids), right=True)
    edge = torch.full((groups, 1), length, device=ends.device)
    ends = torch.cat([torch.zeros_like(edge), ends, edge], dim=1)
    sums = line.sums.gather(1, ends).diff(dim=1)
    counts = line.weighed(ends).diff(dim=1)
    if line.masses is None:
        return torch.where(counts > 0, sums / counts.clamp(min=1), centroids), counts
    # Differences of long sums are not exact: a mean of what hardly counts must still lie within its run.
    first = line.ordered.gather(1, ends[:, :-1].clamp(max=length - 1)).double()
    last = line.ordered.gather(1, (ends[:, 1:] - 1).clamp(min=0)).double()
    means = (sums / counts.where(counts > 0, 1.0)).maximum(first).minimum(last)
    return torch.where(counts > 0, means, centroids), counts


def _midpoints(centroids: Tensor) -> Tensor:
    """Midpoints rounded down to float32: x ≤ midpoint then holds for the same float32 x as it does in float64."""
    exact = (centroids[:, 1:].double() + centroids[:, :-1].double()) / 2
    rounded = exact.float()
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > exact, below, rounded).contiguous()


def _nearest(values: Tensor, books: Tensor) -> Tensor:
    return torch.searchsorted(_midpoints(books), values.contiguous(), out_int32=True).to(torch.uint8)


def _quantiles(line: _Line, levels: int) -> Tensor:
    counted = line.ordered.shape[1] - line.zeros[:, None]
    shares = (torch.arange(levels, dtype=torch.float64, device=line.ordered.device) + 0.5) / levels
    rank = (shares * counted).long().clamp(max=line.ordered.shape[1] - 1)
    return line.ordered.gather(1, line.position(rank)).double()


def _even(line: _Line, levels: int) -> Tensor:
    low, high = line.ordered[:, :1].double(), line.ordered[:, -1:].double()
    shares = (torch.arange(levels, dtype=torch.float64, device=line.ordered.device) + 0.5) / levels
    return low + shares * (high - low)


def _companded(line: _Line, levels: int) -> Tensor:
    """Centroids as dense as the cube root of the values' density, read off a histogram."""
    low, high = line.ordered[:, :1].double(), line.ordered[:, -1:].double()
    shares = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=line.ordered.device)
    edges = low + shares * (high - low)
    counts = line.counted(torch.searchsorted(line.ordered, edges.float().contiguous(), right=True)).diff(dim=1)
    mass = counts.double().pow(1 / 3).cumsum(dim=1)
    wanted = (torch.arange(levels, dtype=torch.float64, device=mass.device) + 0.5) / levels * mass[:, -1:]
    place = torch.searchsorted(mass, wanted.contiguous()).clamp(max=_BINS - 1)
    return (edges.gather(1, place) + edges.gather(1, place + 1)) / 2


def _sums(values: Tensor) -> Tensor:
    """Sums in float64 of all values before each place, (groups, n + 1)."""
    sums = torch.zeros(values.shape[0], values.shape[1] + 1, dtype=torch.float64, device=values.device)
    torch.cumsum(values, dim=1, dtype=torch.float64, out=sums[:, 1:])
    return sums


def _sorted(values: Tensor) -> Tensor:
    # numpy's sort is several times faster than torch's on a CPU, which sorts indices along.
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=1))
    return values.sort(dim=1).values
