"""Weights as 8-bit floats, multiplied by inputs as 8-bit floats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hayless.core.ledger import Row
from hayless.kernels import fp8
from hayless.methods.common.packing import Packer
from hayless.methods.common.row_codes import RowCodes, packed_by_row, rows_of
from hayless.methods.quantize.fp8.config import Fp8Config
from hayless.methods.quantize.fp8.form import form_of
from hayless.model.packing import Pieces


class Fp8(RowCodes):
    """e4m3 codes and a scale for each row."""

    unit = 1.0

    def multiply(self, x: Tensor, bias: Tensor | None, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """x quantized token by token; W is not unpacked where the device multiplies e4m3."""
        y = fp8.product(rows_of(x), pieces["codes"], pieces["scale"], bias)
        return y.view(*x.shape[:-1], self.form.rows)

    def to_disk(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor]:
        """compressed-tensors' tensors."""
        return {"weight": pieces["codes"], "weight_scale": pieces["scale"][:, None]}

    def from_disk(self, tensors: Mapping[str, Tensor], name: str) -> Pieces:
        """The pieces in compressed-tensors' tensors; scales may be stored in 16 bits."""
        return self.checked(tensors["weight"], tensors["weight_scale"].flatten(), name)


def packing_of(row: Row, config: Fp8Config) -> Fp8:
    """The packing of one row."""
    return Fp8(form_of(row, config))


def pack_fp8(weight: Tensor, packing: Fp8, config: Fp8Config) -> Pieces:
    """Quantize a tensor (matrices, rows, columns) by the largest magnitude of each row."""
    return packed_by_row(weight, packing, fp8.rows_quantized)


FP8 = Packer(packing_of, pack_fp8)
"""Fills the transform slot."""
