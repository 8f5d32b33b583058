"""Lloyd's algorithm for points of any dimension: the same k-means as for weights, where no line gives an order."""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.methods.quantize.kmeans.reference import spread_start

_ROWS = 16_384
"""Points whose distances to all centroids exist at once."""


def cluster(points: Tensor, count: int, *, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centroids (at most `count`, d) of points (n, d), and the index of each point's nearest.

    Starts by k-means++ and stops when no centroid moves. Fewer distinct points than `count` give a centroid each.
    """
    centroids = spread_start(points, count, torch.Generator().manual_seed(seed))
    for _ in range(iterations):
        index = nearest(points, centroids)
        sizes = torch.bincount(index, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, index, points)
        moved = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids, nearest(points, centroids)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The index of the centroid nearest to each point."""
    return torch.cat([torch.cdist(rows, centroids).argmin(dim=1) for rows in points.split(_ROWS)])
