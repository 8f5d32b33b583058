"""Palettization as the papers write it: slow, obvious, for any number of dimensions.

Deep Compression (Han, Mao and Dally 2015, arXiv:1510.00149), section 3, equation 2: codebook and indices minimise
Σ_i Σ_{w ∈ c_i} |w − c_i|².
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lloyd(
    points: Tensor, centroids: Tensor, iterations: int, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: points (n, d) and starting centroids (k, d) → centroids (k, d) and each point's (n,).

    A point takes the nearest centroid (the first of several), a centroid the mean of its points; one without points
    stays where it is. With `importance` (n,) the mean is weighted (SqueezeLLM, arXiv:2306.07629, equation 4).
    """
    importance = torch.ones_like(points[:, 0]) if importance is None else importance
    for _ in range(iterations):
        nearest = nearest_of(points, centroids)
        moved = centroids.clone()
        for index in range(len(centroids)):
            h = importance[nearest == index, None]
            if h.sum() > 0:
                moved[index] = (h * points[nearest == index]).sum(dim=0) / h.sum()
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids, nearest_of(points, centroids)


def nearest_of(points: Tensor, centroids: Tensor) -> Tensor:
    """The index of the centroid nearest to each point."""
    return (points[:, None] - centroids[None]).square().sum(dim=2).argmin(dim=1)


def spread_start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each further centroid is a point drawn by its squared distance."""
    chosen = points[torch.randint(len(points), (1,), generator=generator)]
    distance = (points - chosen).square().sum(dim=1)
    while len(chosen) < count and distance.any():
        point = points[torch.multinomial(distance, 1, generator=generator)]
        chosen = torch.cat([chosen, point])
        distance = torch.minimum(distance, (points - point).square().sum(dim=1))
    return chosen


def pack(codes: list[int], bits: int) -> bytes:
    """Indices as one long binary number, the first in the lowest bits, written from its low end."""
    number = sum(code << (place * bits) for place, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


def linear(x: Tensor, codes: Tensor, codebook: Tensor, bias: Tensor | None) -> Tensor:
    """x (…, in), indices (out, in), codebook (2^bits,) → (…, out): look each weight up, then multiply."""
    return F.linear(x, codebook[codes.long()], bias)
