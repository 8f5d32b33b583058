"""Packings whose codes are multiplied by kernels that read them as they are held."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.core.packing import FEW, Format
from hayless.kernels.packed.formats import Packed
from hayless.kernels.packed.linear import linear
from hayless.model.packing import Packing, Pieces

Form = TypeVar("Form", bound=Format, covariant=True)


class KernelPacking(Packing[Form]):
    """A packing whose codes kernels read on a GPU: for few tokens while they multiply, for more to write the matrix."""

    def multiply(self, x: Tensor, bias: Tensor | None, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """x · Wᵀ + bias, by a kernel where one serves."""
        held = self.codes(x, pieces, dtype)
        return F.linear(x, self._whole(pieces, dtype), bias) if held is None else linear(x, held, bias)

    def multiply_back(self, gradient: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """gradient · W, for any number of tokens."""
        return gradient.matmul(self._whole(pieces, dtype).to(gradient.dtype))

    def _whole(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The matrix (rows, columns)."""
        on_gpu = next(iter(pieces.values())).is_cuda
        held = self.held(pieces) if on_gpu and self.form.matrices == 1 and find_spec("triton") else None
        if held is None:
            return self.unpack(pieces, dtype)[0]
        from hayless.kernels.packed.dequantize import dequantize

        return dequantize(held, dtype)

    def codes(self, x: Tensor, pieces: Pieces, dtype: torch.dtype) -> Packed | None:
        """The matrix as the kernels have it where one serves for such an x."""
        few = x.is_cuda and x.dtype == dtype and x.numel() <= FEW * self.form.columns
        return self.held(pieces) if few and self.form.matrices == 1 else None

    def held(self, pieces: Pieces) -> Packed | None:
        """One matrix as the kernels have it: the pieces themselves; None where none reads such a form."""
        raise NotImplementedError
