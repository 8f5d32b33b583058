"""What BitFit makes of a ledger; there is nothing to set. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hayless.core.errors import NotSupported
from hayless.core.ledger import Ledger, Row
from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.core.roles import Role
from hayless.methods.common.sites import refuse_second


class BitFitConfig(MethodConfig):
    """Every bias is trained, of linear modules and norms alike; nothing else is."""

    method: Literal["bitfit"] = "bitfit"


def claims(config: BitFitConfig) -> tuple[Claim, ...]:
    """It decides for the whole model what trains, so no branch can stand beside it."""
    return (Claim(Aspect.BRANCH, frozenset(Role)),)


def predict(ledger: Ledger, config: BitFitConfig) -> Ledger:
    """The ledger after `bitfit`: the same tensors, of which biases are trained. NotSupported where there are none."""
    refuse_second(ledger, config.method)
    if not any(is_bias(row) for row in ledger.rows):
        raise NotSupported(
            f"A {ledger.dims.model_type} model of this shape has no biases: bitfit would train nothing.",
            hint="ia3 trains as few parameters, and needs no biases.",
        )
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=is_bias(row)))


def is_bias(row: Row) -> bool:
    """Whether a row is the bias of a module."""
    return row.parameter.endswith("bias")
