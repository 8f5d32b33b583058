"""The form of a palettized tensor: a stream of packed indices and its codebooks. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hayless.core.ledger import Ledger, Product, Row
from hayless.core.packing import FROM_CODES, Format, Piece
from hayless.methods.common.packed_rows import pack_rows
from hayless.methods.common.stages import check_inside, stages
from hayless.methods.common.targets import matching
from hayless.methods.quantize.kmeans.config import KMeansConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PaletteFormat(Format):
    """Indices of `bits` into codebooks that `group_size` rows of a matrix share, never those of two experts."""

    bits: int
    group_size: int

    @property
    def codebooks(self) -> int:
        """How many codebooks there are."""
        return self.matrices * -(-self.rows // self.group_size)

    @property
    def product(self) -> Product | None:
        """Indices are looked up as they are read, where bytes hold whole ones of one row."""
        return None if 8 % self.bits or self.columns * self.bits % 8 else FROM_CODES

    def pieces(self, dtype: str) -> tuple[Piece, ...]:
        """The stream of indices, matrix by matrix and row by row, and the codebooks."""
        return (
            Piece("codes", (stream_bytes(self.elements, self.bits),), "uint8"),
            Piece("codebook", (self.codebooks, 2**self.bits), dtype, cast=True),
        )


def form_of(row: Row, config: KMeansConfig) -> PaletteFormat:
    """The form of one row; without a group size all rows of a matrix share a codebook."""
    form = PaletteFormat(shape=row.shape, layout=row.layout, bits=config.bits, group_size=1)
    rows = max(1, form.rows)
    return replace(form, group_size=min(config.group_size or rows, rows))


def predict(ledger: Ledger, config: KMeansConfig) -> Ledger:
    """The ledger after `kmeans`, exact in bytes and in nonzero weights (where `keep_zeros` holds).

    NotSupported where importance is asked for of what is no matrix of a decoder's block.
    """
    if config.importance:
        stages(ledger.dims)
        check_inside(matching(ledger, config.targets, config.method), config)
    packed = pack_rows(ledger, config, form_of)
    if not config.keep_zeros:
        return packed
    rows = tuple(replace(new, nonzero=old.nonzero) for old, new in zip(ledger.rows, packed.rows, strict=True))
    return replace(packed, rows=rows)


def stream_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed indices."""
    return -(-count * bits // 8)
