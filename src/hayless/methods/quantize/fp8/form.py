"""The form of weights as 8-bit floats, and what multiplying them takes. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from hayless.core.ledger import Layout, Ledger, Product, Row, Scratch
from hayless.core.packing import Piece
from hayless.methods.common.packed_rows import pack_rows
from hayless.methods.common.row_scaled import RowScaledFormat
from hayless.methods.quantize.fp8.config import Fp8Config

ECOSYSTEM = "compressed-tensors-float"
"""compressed-tensors' files of 8-bit floats; those of integers are another layout, and a folder is in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Format(RowScaledFormat):
    """Codes e4m3; a weight is its code times the scale of its row."""

    code_dtype: str = "float8_e4m3fn"

    @property
    def ecosystem(self) -> str:
        """compressed-tensors', which does not know Conv1D."""
        return "" if self.layout is Layout.CONV1D else ECOSYSTEM

    def disk(self, dtype: str) -> tuple[Piece, ...]:
        """compressed-tensors' tensors."""
        weight = Piece("weight", (self.rows, self.columns), self.code_dtype)
        return weight, Piece("weight_scale", (self.rows, 1), "float32")

    @property
    def product(self) -> Product:
        """The codes and scale of each token. In plain PyTorch also both factors and the result in wider dtypes: W in 16
        bits, x twice, and the result in float32 twice."""
        kernel = Scratch(0, self.columns + 4)
        plain = Scratch(2 * self.rows * self.columns, 5 * self.columns + 8 * self.rows)
        return Product(self.code_dtype, kernel, plain)


def form_of(row: Row, config: Fp8Config) -> Fp8Format:
    """The form of one row."""
    return Fp8Format(shape=row.shape, layout=row.layout)


def predict(ledger: Ledger, config: Fp8Config) -> Ledger:
    """The ledger after `fp8`, exact in bytes."""
    return pack_rows(ledger, config, form_of)
