"""The form of a weight in 4-bit blocks, in memory and in bitsandbytes' files. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from hayless.core.ledger import Product, Row
from hayless.core.packing import FROM_CODES, Format, Piece
from hayless.methods.quantize.nf4.config import NF4Config

NESTED_BLOCK = 256
"""Scales that share a second scale."""
ECOSYSTEM = "bitsandbytes-4bit"
"""bitsandbytes' files of 4-bit weights; those of 8-bit ones are another layout, and a folder is in one."""
_OFFSET_WIDTH = 24
"""The longest float64 as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat(Format):
    """4-bit codes along the flattened weight, two a byte, the first in the high half; a scale a block of it."""

    type: str
    block_size: int
    double: bool

    @property
    def code_bytes(self) -> int:
        """Bytes of all codes."""
        return -(-self.elements // 2)

    @property
    def blocks(self) -> int:
        """How many scales there are; the last block may be shorter."""
        return -(-self.elements // self.block_size)

    def pieces(self, dtype: str) -> tuple[Piece, ...]:
        """Codes and scales; with `double` that of block b is table[absmax[b]] · nested_absmax[b // 256] + offset."""
        codes = Piece("codes", (self.code_bytes,), "uint8")
        if not self.double:
            return codes, Piece("absmax", (self.blocks,), "float32")
        return (
            codes,
            Piece("absmax", (self.blocks,), "uint8"),
            Piece("absmax_table", (256,), "float32"),
            Piece("nested_absmax", (-(-self.blocks // NESTED_BLOCK),), "float32"),
            Piece("offset", (), "float32"),
        )

    @property
    def product(self) -> Product | None:
        """Codes are read as they are where no block goes on in the next row."""
        return None if self.columns % self.block_size else FROM_CODES

    @property
    def ecosystem(self) -> str:
        """bitsandbytes has no int4."""
        return "" if self.type == "int4" else ECOSYSTEM

    def disk(self, dtype: str) -> tuple[Piece, ...]:
        """bitsandbytes' tensors."""
        _, absmax, *nested = self.pieces(dtype)
        tensors = [
            Piece("weight", (self.code_bytes, 1), "uint8"),
            Piece("weight.absmax", absmax.shape, absmax.dtype),
            Piece("weight.quant_map", (16,), "float32"),
        ]
        if nested:
            tensors += [
                Piece("weight.nested_absmax", nested[1].shape, "float32"),
                Piece("weight.nested_quant_map", (256,), "float32"),
            ]
        return *tensors, Piece(self.state_name, (self.state_bytes(dtype),), "uint8")

    @property
    def state_name(self) -> str:
        """What bitsandbytes calls the tensor that is JSON."""
        return f"weight.quant_state.bitsandbytes__{self.type}"

    def state_bytes(self, dtype: str) -> int:
        """Bytes of that JSON: its text without values, and these; filled up with spaces where it has an offset, so that
        the length does not depend on it."""
        text = '{"quant_type": "", "blocksize": , "dtype": "", "shape": [, ]}'
        values = f"{self.type}{self.block_size}{dtype}{self.rows}{self.columns}"
        if not self.double:
            return len(text) + len(values)
        nested = f', "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": '
        return len(text) + len(values) + len(nested) + _OFFSET_WIDTH


def form_of(row: Row, config: NF4Config) -> BlockFormat:
    """The form of one row."""
    return BlockFormat(
        shape=row.shape, layout=row.layout, type=config.type, block_size=config.block_size, double=config.double
    )
