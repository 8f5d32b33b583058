"""Rounding the weights of a loaded model to integers."""

from __future__ import annotations

from torch import Tensor

from hayless.core.ledger import Row
from hayless.methods.common.integer_packing import IntegerPacking, rounded, squared_error
from hayless.methods.common.packing import Packer
from hayless.methods.quantize.uniform.config import UniformConfig
from hayless.methods.quantize.uniform.form import form_of
from hayless.model.packing import Pieces


def packing_of(row: Row, config: UniformConfig) -> IntegerPacking:
    """The packing of one row."""
    return IntegerPacking(form_of(row, config))


def pack(weight: Tensor, packing: IntegerPacking, config: UniformConfig) -> Pieces:
    """Round a tensor (matrices, rows, columns) to the nearest codes."""
    return rounded(weight, packing.form, squared_error if config.clip else None)


UNIFORM = Packer(packing_of, pack)
"""Fills the transform slot."""
