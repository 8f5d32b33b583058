"""Packings whose codes are multiplied by kernels that read them as they are held."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from hayless.core.packing import FEW, Format
from hayless.kernels.packed.formats import Packed
from hayless.kernels.packed.linear import linear
from hayless.model.packing import Packing, Pieces

F = TypeVar("F", bound=Format, covariant=True)


class KernelPacking(Packing[F]):
    """A packing whose codes kernels turn into numbers while they read them, for few tokens on a GPU."""

    def multiply(self, x: Tensor, bias: Tensor | None, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """x · Wᵀ + bias, by a kernel where one serves."""
        few = x.is_cuda and x.dtype == dtype and x.numel() <= FEW * self.form.columns
        held = self.held(pieces) if few and self.form.matrices == 1 else None
        return super().multiply(x, bias, pieces, dtype) if held is None else linear(x, held, bias)

    def held(self, pieces: Pieces) -> Packed | None:
        """One matrix as the kernels have it: the pieces themselves; None where none reads such a form."""
        raise NotImplementedError
