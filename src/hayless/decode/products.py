"""Products of a decode program: a matrix as it is, and one that a method has packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.model.packing import PackedModule


class Linear:
    """A matrix (out, in) and its bias."""

    __slots__ = ("_transposed", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._transposed = weight.T

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What a product reads."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        return F.linear(x, self.weight, self.bias)

    def into(self, out: Tensor, x: Tensor) -> None:
        """out ← x·Wᵀ + b, both of two dimensions."""
        if self.bias is None:
            torch.mm(x, self._transposed, out=out)
        else:
            torch.addmm(self.bias, x, self._transposed, out=out)

    def onto(self, out: Tensor, x: Tensor) -> None:
        """out ← out + x·Wᵀ + b, both of two dimensions."""
        out.addmm_(x, self._transposed)
        if self.bias is not None:
            out.add_(self.bias)


class PackedProduct:
    """The same of a module whose weight is packed: its method's own product, from the module's own tensors."""

    __slots__ = ("_dtype", "_packing", "_pieces", "bias")

    def __init__(self, module: PackedModule, bias: Tensor | None) -> None:
        self.bias = bias
        self._packing = module.packings["weight"]
        self._pieces = module.pieces("weight")
        self._dtype = module.unpacked_dtype

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What a product reads."""
        pieces = list(self._pieces.values())
        return pieces if self.bias is None else [*pieces, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        return self._packing.multiply(x, self.bias, self._pieces, self._dtype)

    def into(self, out: Tensor, x: Tensor) -> None:
        """out ← x·Wᵀ + b, both of two dimensions."""
        out.copy_(self(x))

    def onto(self, out: Tensor, x: Tensor) -> None:
        """out ← out + x·Wᵀ + b, both of two dimensions."""
        out.add_(self(x))


AnyProduct = Linear | PackedProduct
