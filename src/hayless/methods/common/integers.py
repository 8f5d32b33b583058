"""Weights as whole numbers of 2, 3, 4 or 8 bits: the form that several methods fill, and what a user can set of it.

value = (code − zero) · scale. No torch; the arithmetic is in `hayless.methods.common.integer_packing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hayless.core.ledger import Layout, Product, Row
from hayless.core.packing import FROM_CODES, Format, Piece
from hayless.methods.common.packed_rows import PackingConfig


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


DiskLayout = Literal["compressed-tensors", "gptq", "gptq_v1", "awq"]
"""Layouts of integers of other libraries: compressed-tensors' pack-quantized, both versions of GPTQ's, AutoAWQ's."""

ECOSYSTEMS: dict[DiskLayout, str] = {"compressed-tensors": "compressed-tensors-int", "gptq": "gptq", "awq": "awq"}
ECOSYSTEMS["gptq_v1"] = ECOSYSTEMS["gptq"]
"""What rows and formats call these layouts: compressed-tensors has another one for floats."""

Bits = Annotated[Literal[2, 3, 4, 8], BeforeValidator(_number)]
GroupSize = Annotated[Literal[32, 64, 128, "row", "tensor"], BeforeValidator(_number)]


class IntegerConfig(PackingConfig):
    """What every method that packs weights as integers can be told."""

    bits: Bits = Field(4, description="Bits a weight.")
    group_size: GroupSize = Field(
        64,
        description="Neighbouring inputs that share a scale: 32, 64 or 128 (a last group may be shorter), a whole row"
        " or the whole tensor.",
    )
    symmetric: bool = Field(
        True, description="Zero is the middle code; otherwise each scale has a zero of its own (8 bits more)."
    )


class CalibratedConfig(IntegerConfig):
    """What methods can be told that pack weights as integers by how text uses them."""

    group_size: Annotated[Literal[32, 64, 128, "row"], BeforeValidator(_number)] = Field(
        64, description="Neighbouring inputs that share a scale: 32, 64 or 128 (a last group may be shorter), or a row."
    )
    round_unseen: bool = Field(
        False,
        description="Round to the nearest what fewer tokens reach than it has inputs (a rare expert), not refuse it.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerFormat(Format):
    """Codes packed along the input, a scale a group of columns and, where not `symmetric`, a zero a group.

    Where the columns are no multiple of `group_size`, the last group of each row is shorter; nothing is padded but the
    last byte of each row. With `twos_complement` the highest bit of a code is flipped: of two bits 01 = 1, 00 = 0,
    11 = −1 and 10 = −2.
    """

    bits: int
    group_size: GroupSize
    symmetric: bool = True
    twos_complement: bool = False
    disk_layout: DiskLayout = "compressed-tensors"

    @property
    def width(self) -> int:
        """Columns that share a scale."""
        return min(self.group_size, self.columns) if isinstance(self.group_size, int) else self.columns

    @property
    def scales(self) -> tuple[int, int]:
        """(rows of all matrices, groups): how many scales there are; one of a tensor."""
        if self.group_size == "tensor":
            return 1, 1
        return self.matrices * self.rows, -(-self.columns // max(1, self.width))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of codes."""
        return -(-self.columns * self.bits // 8)

    @property
    def product(self) -> Product | None:
        """Codes are read as they are, except 3 bits and rows whose last group or byte is not full."""
        whole = self.columns * self.bits % 8 == 0 and self.columns % max(1, self.width) == 0
        return FROM_CODES if whole and self.bits != 3 else None

    def pieces(self, dtype: str) -> tuple[Piece, ...]:
        """`codes` by row, `scale` in the weights' dtype and, where not symmetric, `zero`."""
        codes = Piece("codes", (self.matrices * self.rows, self.row_bytes), "uint8")
        scale = Piece("scale", self.scales, dtype, cast=True)
        return (codes, scale) if self.symmetric else (codes, scale, Piece("zero", self.scales, "uint8"))

    @property
    def ecosystem(self) -> str:
        """That of `disk_layout`, where its library and those that run its files know the form: linears of 4 or 8 bits
        (AutoAWQ's of 4) whose groups divide their inputs."""
        grouped = self.group_size == "row" or (isinstance(self.group_size, int) and self.columns % self.group_size == 0)
        known = self.bits in ((4,) if self.disk_layout == "awq" else (4, 8)) and not self.twos_complement
        whole = self.disk_layout == "compressed-tensors" or (self.rows % 8 == 0 and self.columns % 8 == 0)
        return ECOSYSTEMS[self.disk_layout] if self.layout is Layout.LINEAR and grouped and known and whole else ""

    def disk(self, dtype: str) -> tuple[Piece, ...]:
        """The tensors of `disk_layout`: compressed-tensors' pack-quantized, GPTQ's, or AutoAWQ's for its GEMM."""
        groups, in_words, out_words = self.scales[1], self._words(self.columns), self._words(self.rows)
        if self.disk_layout == "compressed-tensors":
            zero = () if self.symmetric else (Piece("weight_zero_point", (out_words, groups), "int32"),)
            packed = Piece("weight_packed", (self.rows, in_words), "int32")
            return packed, Piece("weight_scale", self.scales, dtype), Piece("weight_shape", (2,), "int64"), *zero
        by_output = (Piece("qzeros", (groups, out_words), "int32"), Piece("scales", (groups, self.rows), dtype))
        if self.disk_layout == "awq":
            return Piece("qweight", (self.columns, out_words), "int32"), *by_output
        return Piece("qweight", (in_words, self.rows), "int32"), *by_output, Piece("g_idx", (self.columns,), "int32")

    def _words(self, count: int) -> int:
        """32-bit words of so many codes."""
        return -(-count * self.bits // 32)


def form_of(row: Row, config: IntegerConfig) -> IntegerFormat:
    """The form of one row."""
    return IntegerFormat(
        shape=row.shape,
        layout=row.layout,
        bits=config.bits,
        group_size=config.group_size,
        symmetric=config.symmetric,
    )


def middle(bits: int) -> int:
    """The code of zero where scales are symmetric."""
    return 1 << (bits - 1)
