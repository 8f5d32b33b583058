"""AWQ's two searches, by Σ x·xᵀ instead of the inputs themselves: the same errors, and nothing else is kept.

Lin et al., arXiv:2306.00978, section 3.2: scales s = x̄^α for the α whose output error is least (their later code also
divides by w̄^(1−α)); then, as in the authors' code, the range of each group of weights is clipped where that loses less
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hayless.methods.common.calibrated import output_error
from hayless.methods.common.integer_packing import Loss, in_groups, nearest, out_of_groups, values_of
from hayless.methods.common.integers import IntegerFormat

_LEAST = 1e-4
"""Under which no scale goes before it is balanced (the authors' code)."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A matrix (rows, columns) in float32, Σ x·xᵀ of what it reads, and the form and dtype it will be held in."""

    matrix: Tensor
    gram: Tensor
    form: IntegerFormat
    dtype: torch.dtype

    @property
    def shares(self) -> Tensor:
        """Each weight's magnitude as a share of its group's largest (rows, columns)."""
        grouped = in_groups(self.matrix.abs(), self.form)
        shares = grouped / grouped.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return out_of_groups(shares, self.form, len(self.matrix))

    def error(self, scales: Tensor) -> Tensor:
        """‖Q(W·diag(s))·diag(s)⁻¹·x − W·x‖² over all x, for scales (columns,)."""
        scaled = self.matrix * scales
        found = nearest(scaled, self.form, self.dtype)
        values = values_of(in_groups(found.codes, self.form), found.scale, found.zero)
        return output_error(out_of_groups(values, self.form, len(scaled)) / scales - self.matrix, self.gram)


def search(
    readers: Sequence[Reader], magnitude: Tensor, channels: Tensor, grid: int, *, by_weights: bool = False
) -> Tensor:
    """The scales (channels,) with which `readers` lose least in all; `magnitude` (columns,) is x̄ of what they read.

    Columns of one channel share its mean magnitude and its scale. `by_weights` tries x̄^α / w̄^(1−α) too,
    with w̄ the mean share that a column's weights are of their groups' largest.
    """
    mean = _of_channels(magnitude, channels)
    tried = [mean.pow(step / grid) for step in range(grid)]
    if by_weights:
        own = _of_channels(torch.cat([reader.shares for reader in readers]).mean(0), channels)
        tried += [mean.pow(step / grid) / (own.pow(1 - step / grid) + _LEAST) for step in range(grid)]
    best, least = torch.ones_like(mean), torch.tensor(torch.inf)
    for found in tried:
        scales = found.clamp(min=_LEAST)
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = torch.stack([reader.error(scales[channels]) for reader in readers]).sum().cpu()
        if error < least:
            best, least = scales, error
    return best


def _of_channels(values: Tensor, channels: Tensor) -> Tensor:
    """The mean of the columns (columns,) of each channel (channels,)."""
    count = int(channels.max()) + 1
    sums = torch.zeros(count, device=values.device).index_add_(0, channels, values)
    return sums / torch.bincount(channels, minlength=count)


def output_loss(gram: Tensor, form: IntegerFormat) -> Loss:
    """What a group's differences (rows, groups, n) lose of the output, its columns alone."""
    width, groups = form.width, form.scales[1]
    filled = pad(gram, (0, groups * width - len(gram)) * 2).view(groups, width, groups, width)
    own = filled.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def loss(difference: Tensor) -> Tensor:
        return (torch.einsum("rgn,gnm->rgm", difference, own) * difference).sum(dim=-1)

    return loss
