"""Sums of what low-rank modules add to one matrix, δ = Σ wᵢ sᵢ BᵢAᵢ, and sums in which they do not disturb each other.

Each takes the modules that reach the matrix and gives A (r, in) and B (out, r) of one module scaled by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One module's matrices A (r, in) and B (out, r), their scaling s, and the weight w it has in the sum."""

    a: Tensor
    b: Tensor
    scaling: float
    weight: float

    @property
    def delta(self) -> Tensor:
        """s·BA, without the weight."""
        return self.scaling * (self.b.float() @ self.a.float())


def concatenated(parts: Sequence[Part], rank: int) -> Pair:
    """The sum itself: A's and B's side by side, at the ranks' sum; what is left of `rank` is zero."""
    a = torch.cat([part.a.float() for part in parts])
    b = torch.cat([part.weight * part.scaling * part.b.float() for part in parts], dim=1)
    left = rank - len(a)
    return torch.nn.functional.pad(a, (0, 0, 0, left)), torch.nn.functional.pad(b, (0, left))


def separate(parts: Sequence[Part]) -> Pair:
    """(Σ wᵢBᵢ)(Σ wᵢAᵢ), as LoraHub has it (Huang et al., 2023, arXiv:2307.13269, section 3.2)."""
    a = torch.stack([part.weight * part.a.float() for part in parts]).sum(0)
    b = torch.stack([part.weight * part.scaling * part.b.float() for part in parts]).sum(0)
    return a, b


def truncated(parts: Sequence[Part], rank: int) -> Pair:
    """The sum's nearest neighbour of `rank`: its first singular vectors, found in the small space of all modules."""
    a, b = concatenated(parts, sum(len(part.a) for part in parts))
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    left, right = q_b @ (u[:, :kept] * root), (q_a @ v[:kept].T * root).T
    missing = rank - kept
    return torch.nn.functional.pad(right, (0, 0, 0, missing)), torch.nn.functional.pad(left, (0, missing))


def factored(delta: Tensor, rank: int) -> Pair:
    """The nearest neighbour of `rank` of any matrix (out, in)."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """TIES (Yadav et al., 2023, arXiv:2306.01708, algorithm 1), on each matrix by itself.

    Of each module the `density` largest changes are kept; each place takes the sign that most of the weighted changes
    have, and the mean of those with that sign.
    """
    trimmed = torch.stack([weight * _largest(delta, density) for delta, weight in zip(deltas, weights, strict=True)])
    sign = trimmed.sum(0).sign()
    agree = (trimmed.sign() == sign) & (sign != 0)
    return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)


def dare(deltas: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator) -> Tensor:
    """DARE (Yu et al., 2023, arXiv:2311.03099, section 3.2): changes are dropped at random, the rest is rescaled."""
    summed = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        kept = torch.rand(delta.shape, generator=generator).to(delta.device) < density
        summed += weight * delta * kept / density
    return summed


def total(parts: Sequence[Part]) -> Tensor:
    """The sum as a matrix (out, in)."""
    return torch.stack([part.weight * part.delta for part in parts]).sum(0)


def _largest(delta: Tensor, density: float) -> Tensor:
    """The largest entries; the others zero."""
    count = max(1, round(density * delta.numel()))
    least = delta.abs().flatten().topk(count).values[-1]
    return delta * (delta.abs() >= least)
