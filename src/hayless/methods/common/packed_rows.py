"""Predictions of methods that pack weights, and what they refuse. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import Field

from hayless.core.errors import NotSupported
from hayless.core.ledger import Ledger, Row
from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.core.packing import Format, is_replaceable, packed_row
from hayless.methods.common.targets import Targets, matching, roles_of


class PackingConfig(MethodConfig):
    """The config of a method that packs the weights of its targets."""

    targets: Targets = Field(("blocks",), description="Roles or groups of roles whose weights are packed.")


C = TypeVar("C", bound=PackingConfig)


def claims(config: PackingConfig) -> tuple[Claim, ...]:
    """It changes how the targets are stored."""
    return (Claim(Aspect.STORAGE, roles_of(config.targets)),)


def pack_rows(ledger: Ledger, config: C, form: Callable[[Row, C], Format]) -> Ledger:
    """The ledger after each target is held in its `form`."""
    chosen = check_untied(ledger, config)

    def change(row: Row) -> Row:
        if row not in chosen:
            return row
        return packed_row(row, form(row, config), config.method, replaceable=is_replaceable(ledger, row))

    return ledger.rewrite(config.method, change)


def check_untied(ledger: Ledger, config: PackingConfig) -> list[Row]:
    """The rows of the targets. NotSupported where another module shares one of them."""
    chosen = matching(ledger, config.targets, config.method)
    shared = {row.tied_to: row for row in ledger.rows if row.tied_to}
    for row in chosen:
        if row.module in shared:
            raise tied(config.method, row.module, shared[row.module].module)
    return chosen


def tied(method: str, module: str, other: str) -> NotSupported:
    """The refusal of a table that another module shares."""
    return NotSupported(
        f"{method} cannot pack {module}: {other} is tied to it, and packed weights cannot be shared.",
        hint="Leave 'embedding' and 'head' out of the targets.",
    )
