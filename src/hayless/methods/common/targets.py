"""Which weights a method acts on: roles and groups of roles, as the user names them, found in a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from hayless.core.errors import RequestError, nearest, unknown
from hayless.core.ledger import Ledger, Row
from hayless.core.roles import ATTENTION, BLOCK_LINEARS, CROSS_ATTENTION, FEED_FORWARD, Role

GROUPS: dict[str, frozenset[Role]] = {
    "blocks": BLOCK_LINEARS,
    "attention": ATTENTION | CROSS_ATTENTION,
    "feed_forward": FEED_FORWARD,
}
"""Names that stand for several roles; a group takes what the model has of it."""

_NOT_MATRICES = {Role.NORM, Role.ADAPTER}
NAMES = (*GROUPS, *(role.value for role in Role if role not in _NOT_MATRICES))


def one_or_many(value: Any) -> Any:
    """`attention` stands for `[attention]`."""
    return (value,) if isinstance(value, str) else value


def _known(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise ValueError(f"name at least one of {', '.join(NAMES)}")
    for target in targets:
        if target not in NAMES:
            near = nearest(target, NAMES)
            raise ValueError(
                f"{target!r} is none of {', '.join(NAMES)}" + (f"; did you mean {near!r}?" if near else "")
            )
    return targets


Targets = Annotated[tuple[str, ...], BeforeValidator(one_or_many), AfterValidator(_known)]
"""Roles (`q`, `down`, `embedding`) and groups (`blocks`, `attention`, `feed_forward`)."""


def roles_of(targets: Iterable[str]) -> frozenset[Role]:
    """The roles that roles and groups stand for."""
    return frozenset(role for target in targets for role in GROUPS.get(target) or {Role(target)})


def matching(ledger: Ledger, targets: Sequence[str], method: str) -> list[Row]:
    """The matrices and tables of `targets`, in the ledger's order.

    RequestError where a target names nothing in this model, where two names share one tensor and only the one without
    it is named, and where the weights are packed already.
    """
    for target in targets:
        if not any(row.role in roles_of([target]) for row in ledger.rows):
            raise unknown(f"{method} target in a {ledger.dims.model_type} model", target, [*GROUPS, *present(ledger)])
    rows = [row for row in ledger.rows if row.role in roles_of(targets) and len(row.shape) > 1]
    for row in rows:
        if row.tied_to and not any(other.module == row.tied_to for other in rows):
            raise RequestError(
                f"{method}.targets names {row.role.value!r}, but {row.module} is tied to {row.tied_to}: one tensor.",
                hint="Name 'embedding' to change both, or neither.",
            )
        if row.method:
            raise RequestError(
                f"{method} cannot change {row.module}: {row.method} has packed it.",
                hint=f"Apply {method} before {row.method}, or leave {row.role.value!r} out of its targets.",
            )
    return [row for row in rows if not row.tied_to]


def present(ledger: Ledger) -> list[str]:
    """The roles of a model's matrices and tables."""
    return list(
        dict.fromkeys(row.role.value for row in ledger.rows if len(row.shape) > 1 and row.role in roles_of(NAMES))
    )
