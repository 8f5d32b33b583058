"""The form of a uniformly quantized tensor. No torch."""

from __future__ import annotations

from dataclasses import replace

from hayless.core.ledger import Ledger, Row
from hayless.methods.common import integers
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.common.packed_rows import pack_rows
from hayless.methods.quantize.uniform.config import UniformConfig


def form_of(row: Row, config: UniformConfig) -> IntegerFormat:
    """The form of one row."""
    return replace(
        integers.form_of(row, config), twos_complement=config.twos_complement, disk_layout=config.disk_layout
    )


def predict(ledger: Ledger, config: UniformConfig) -> Ledger:
    """The ledger after `uniform`, exact in bytes."""
    return pack_rows(ledger, config, form_of)
