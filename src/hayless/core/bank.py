"""Room for adapters side by side (`hayless.decode.bank`): the matrices beside which it is, and its bytes. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from hayless.core.dtypes import item_bytes
from hayless.core.ledger import Layout, Ledger
from hayless.core.roles import BLOCK_LINEARS

_NOTED = item_bytes("float32") + item_bytes("int32")
"""Bytes of what is noted of an adapter beside each matrix: its scale and its rank."""


def block_matrices(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """(in, out) features by path of every matrix in the blocks; stacked experts, which rows share, are left out."""
    return {
        row.module.replace("{layer}", str(layer)): (row.in_features, row.out_features)
        for row in ledger.where(BLOCK_LINEARS)
        if row.layout is not Layout.EXPERTS
        for layer in row.layers
    }


def bank_bytes(shapes: Iterable[tuple[int, int]], slots: int, rank: int, dtype: str) -> int:
    """Bytes of room for `slots` adapters of up to `rank` beside matrices of these (in, out) features, full or empty."""
    item = item_bytes(dtype)
    return slots * sum(rank * (width + out) * item + _NOTED for width, out in shapes)
