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
        held = self._serving(x, pieces, dtype)
        return super().multiply(x, bias, pieces, dtype) if held is None else linear(x, held, bias)

    def multiply_into(
        self,
        out: Tensor,
        x: Tensor,
        bias: Tensor | None,
        pieces: Pieces,
        dtype: torch.dtype,
        *,
        add: bool,
        overlap: bool,
    ) -> None:
        """The same, written by the kernel."""
        held = self._serving(x, pieces, dtype) if out.is_contiguous() and out.dtype == x.dtype else None
        if held is None:
            super().multiply_into(out, x, bias, pieces, dtype, add=add, overlap=overlap)
        else:
            linear(x, held, bias, out=out, add=add, overlap=overlap)

    def _serving(self, x: Tensor, pieces: Pieces, dtype: torch.dtype) -> Packed | None:
        """The matrix as the kernels have it where one serves for such an x."""
        few = x.is_cuda and x.dtype == dtype and x.numel() <= FEW * self.form.columns
        return self.held(pieces) if few and self.form.matrices == 1 else None

    def held(self, pieces: Pieces) -> Packed | None:
        """One matrix as the kernels have it: the pieces themselves; None where none reads such a form."""
        raise NotImplementedError
