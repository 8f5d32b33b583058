"""Weights as 8-bit codes with one scale for each output channel: the form that int8 and fp8 share. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from hayless.core.ledger import Layout
from hayless.core.packing import Format, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScaledFormat(Format):
    """A code in `code_dtype` for each weight, rows first whatever the layout, and a float32 scale for each row."""

    code_dtype: str

    def pieces(self, dtype: str) -> tuple[Piece, ...]:
        """`codes` (rows, columns) and `scale` (rows,), of a stack of experts with the expert first."""
        stack = (self.matrices,) if self.layout is Layout.EXPERTS else ()
        return (
            Piece("codes", (*stack, self.rows, self.columns), self.code_dtype),
            Piece("scale", (*stack, self.rows), "float32"),
        )
