"""Where sublayers of blocks end, for what stands behind them. No torch."""

from __future__ import annotations

from typing import Literal

from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout, Ledger
from hayless.core.roles import Role
from hayless.methods.common.sites import Target, linear_targets

Sublayers = Literal["both", "attention", "feed_forward"]

LAST: dict[Sublayers, tuple[Role, ...]] = {
    "both": (Role.O, Role.CROSS_O, Role.DOWN),
    "attention": (Role.O, Role.CROSS_O),
    "feed_forward": (Role.DOWN,),
}
"""The modules in which sublayers end, before what they give is added to the residual stream."""


def sublayer_targets(ledger: Ledger, sublayers: Sublayers, method: str) -> list[Target]:
    """The modules in which the sublayers end. NotSupported for experts."""
    wanted = LAST[sublayers]
    present = [row for row in ledger.rows if row.role in wanted and row.is_matrix]
    stacked = next((row for row in present if row.layout is Layout.EXPERTS), None)
    if stacked is not None:
        raise NotSupported(
            f"{method} has no place behind stacked experts: {stacked.module} gives what {stacked.shape[0]} matrices"
            " make of different tokens.",
            hint="sublayers: attention leaves them out.",
        )
    return linear_targets(ledger, [role.value for role in wanted if any(row.role is role for row in present)], method)
