"""What a user can set about prefix tuning, and what it makes of a ledger. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.core.dims import ModelDims
from hayless.core.forward import VIRTUAL
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.methods.common.virtual_rows import add_rows, table_row, unwritten_row


class PrefixConfig(MethodConfig):
    """Every block attends to trained keys and values before the text; all else is frozen."""

    method: Literal["prefix"] = "prefix"
    tokens: int = Field(20, ge=1, description="How many virtual tokens stand before a text.")
    projection: int | None = Field(
        512,
        ge=1,
        description="Width of the two-layer network that makes keys and values of a small table while it trains, and is"
        " folded away when it is saved; null trains them as they are.",
    )


def width_of(dims: ModelDims) -> int:
    """Elements of one virtual token: a key and a value in each layer."""
    return 2 * dims.num_layers * dims.kv_width


def predict(ledger: Ledger, config: PrefixConfig) -> Ledger:
    """The ledger after `prefix`: keys and values, or what makes them, which alone are trained."""
    dims, method, width = ledger.dims, config.method, width_of(ledger.dims)
    if config.projection is None:
        return add_rows(ledger, method, (table_row(method, config.tokens, width, width),))
    hidden = config.projection
    rows = (
        table_row(method, config.tokens, dims.hidden_size, width),
        unwritten_row(method, f"{VIRTUAL}.inner", "weight", (hidden, dims.hidden_size)),
        unwritten_row(method, f"{VIRTUAL}.inner", "bias", (hidden,)),
        unwritten_row(method, f"{VIRTUAL}.outer", "weight", (width, hidden)),
        unwritten_row(method, f"{VIRTUAL}.outer", "bias", (width,)),
    )
    return add_rows(ledger, method, rows)
