"""Weights as int8, multiplied as LLM.int8() does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.core.ledger import Row
from hayless.kernels.int8.backend import few_serve, product_for
from hayless.kernels.int8.plain import LARGEST, as_integers, rows_quantized
from hayless.kernels.packed.formats import Integers
from hayless.methods.common.packing import Packer
from hayless.methods.common.row_codes import RowCodes, packed_by_row, rows_of
from hayless.methods.quantize.int8.config import Int8Config
from hayless.methods.quantize.int8.form import Int8Format, form_of
from hayless.model.packing import Pieces

_ROWS_FIRST = 0
"""bitsandbytes' number for that layout."""


class Int8(RowCodes):
    """int8 codes and the largest magnitude of each row; `threshold` as the method's config has it."""

    unit = float(LARGEST)

    def __init__(self, form: Int8Format, threshold: float) -> None:
        super().__init__(form)
        self.threshold = threshold

    def multiply(self, x: Tensor, bias: Tensor | None, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """x quantized token by token, its columns of outliers as they are; W is not unpacked."""
        flat, codes, scale = rows_of(x), pieces["codes"], pieces["scale"]
        y = product_for(flat, codes, scale, self.threshold)(flat, codes, scale, bias, self.threshold)
        return y.view(*x.shape[:-1], self.form.rows)

    def codes(self, x: Tensor, pieces: Pieces, dtype: torch.dtype) -> Integers | None:
        """The codes as integers of 8 bits, for tokens so few that they are multiplied whole."""
        codes, scale = pieces["codes"], pieces["scale"]
        few = x.dtype == dtype and x.is_contiguous() and few_serve(rows_of(x), codes, scale, self.threshold)
        return as_integers(codes, scale) if few else None

    def to_disk(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor]:
        """bitsandbytes' tensors."""
        return {
            "weight": pieces["codes"],
            "SCB": pieces["scale"],
            "weight_format": torch.tensor(_ROWS_FIRST, dtype=torch.uint8),
        }

    def from_disk(self, tensors: Mapping[str, Tensor], name: str) -> Pieces:
        """The pieces in bitsandbytes' tensors."""
        layout = int(tensors["weight_format"])
        if layout != _ROWS_FIRST:
            raise NotSupported(f"{name} is laid out for one kind of GPU (weight_format {layout}), not rows first.")
        return self.checked(tensors["weight"], tensors["SCB"], name)


def packing_of(row: Row, config: Int8Config) -> Int8:
    """The packing of one row."""
    return Int8(form_of(row, config), config.threshold)


def pack_int8(weight: Tensor, packing: Int8, config: Int8Config) -> Pieces:
    """Quantize a tensor (matrices, rows, columns) by the largest magnitude of each row."""
    return packed_by_row(weight, packing, rows_quantized)


INT8 = Packer(packing_of, pack_int8)
"""Fills the transform slot."""
