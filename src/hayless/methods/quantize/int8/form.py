"""The form of weights under LLM.int8(), and what multiplying them takes. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from hayless.core.ledger import Ledger, Product, Row, Scratch
from hayless.core.packing import Piece
from hayless.kernels.int8.capacity import FEW, capacity_of
from hayless.methods.common.packed_rows import pack_rows
from hayless.methods.common.row_scaled import RowScaledFormat
from hayless.methods.quantize.int8.config import Int8Config

ECOSYSTEM = "bitsandbytes-8bit"
"""bitsandbytes' files of 8-bit weights; those of 4-bit ones are another layout, and a folder is in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Format(RowScaledFormat):
    """Codes from −127 to 127; the scale is the row's largest magnitude, which 127 stands for."""

    code_dtype: str = "int8"

    @property
    def ecosystem(self) -> str:
        """bitsandbytes'."""
        return ECOSYSTEM

    def disk(self, dtype: str) -> tuple[Piece, ...]:
        """bitsandbytes' tensors; its format 0 is rows first."""
        return (
            Piece("weight", (self.rows, self.columns), "int8"),
            Piece("SCB", (self.rows,), "float32"),
            Piece("weight_format", (), "uint8"),
        )

    @property
    def product(self) -> Product:
        """Codes and outlying columns of the input beside it, those of W, and the list of them.

        In plain PyTorch: the input in float32 and its codes, sums in int32 and in float32.
        """
        capacity = capacity_of(FEW + 1, self.columns)
        kernel = Scratch(self.rows * capacity + 5 * self.columns, self.columns + 2 * capacity + 4, FEW)
        return Product("int8", kernel, plain=Scratch(0, 5 * self.columns + 8 * self.rows))


def form_of(row: Row, config: Int8Config) -> Int8Format:
    """The form of one row."""
    return Int8Format(shape=row.shape, layout=row.layout)


def predict(ledger: Ledger, config: Int8Config) -> Ledger:
    """The ledger after `int8`, exact in bytes."""
    return pack_rows(ledger, config, form_of)
