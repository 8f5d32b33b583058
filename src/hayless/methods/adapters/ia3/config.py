"""What a user can set about IA³, and what it makes of a ledger. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from hayless.core.errors import RequestError
from hayless.core.forward import SCALE_IN, SCALE_OUT
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.method import Claim, MethodConfig
from hayless.core.roles import Role
from hayless.methods.common.sites import (
    PEFT_PREFIX,
    ModuleTargets,
    Target,
    adapter_row,
    branch_claims,
    linear_targets,
    refuse_second,
)

_OUTPUTS = (Role.K, Role.V, Role.QKV, Role.CROSS_K, Role.CROSS_V)
_INPUTS = (Role.DOWN,)


class Ia3Config(MethodConfig):
    """A trained vector scales each output of some linear modules, and each input of others; all else is frozen."""

    method: Literal["ia3"] = "ia3"
    outputs: ModuleTargets | None = Field(
        None,
        description="Whose outputs are scaled: roles, groups, or modules by name or path as PEFT has them; keys and"
        " values (a fused projection whole) if neither is given.",
    )
    inputs: ModuleTargets | None = Field(
        None, description="Whose inputs are scaled; the feed-forward's down projection if neither is given."
    )


@dataclass(frozen=True, slots=True)
class Scaled:
    """Modules that get a vector, for what goes in or for what comes out."""

    target: Target
    of_inputs: bool

    @property
    def parameter(self) -> str:
        """The name of the vector in the module."""
        return SCALE_IN if self.of_inputs else SCALE_OUT

    @property
    def width(self) -> int:
        """Elements of the vector."""
        row = self.target.row
        return row.in_features if self.of_inputs else row.out_features

    @property
    def peft_shape(self) -> tuple[int, int]:
        """The vector's shape in PEFT's files."""
        return (1, self.width) if self.of_inputs else (self.width, 1)


def claims(config: Ia3Config) -> tuple[Claim, ...]:
    """It adds a branch to its targets: the scaling."""
    given = (*(config.outputs or ()), *(config.inputs or ()))
    return branch_claims(given or [role.value for role in (*_OUTPUTS, *_INPUTS)])


def predict(ledger: Ledger, config: Ia3Config) -> Ledger:
    """The ledger after `ia3`: vectors, which alone are trained."""
    refuse_second(ledger, config.method)
    rows = tuple(_row(scaled, config.method) for scaled in scaled_of(ledger, config))
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=False), rows)


def scaled_of(ledger: Ledger, config: Ia3Config) -> list[Scaled]:
    """The modules that get a vector. RequestError where a module would get one on both sides."""
    outputs, inputs = config.outputs or (), config.inputs or ()
    if config.outputs is None and config.inputs is None:
        present = {row.role for row in ledger.rows}
        outputs, inputs = (tuple(role.value for role in roles if role in present) for roles in (_OUTPUTS, _INPUTS))
    found = [
        Scaled(target, of_inputs)
        for names, of_inputs in ((outputs, False), (inputs, True))
        for target in (linear_targets(ledger, names, config.method) if names else ())
    ]
    paths = [path for scaled in found for path in scaled.target.paths]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise RequestError(
            f"ia3 would scale both the inputs and the outputs of {twice[0]}.",
            hint="Name it once: PEFT has no form for two.",
        )
    return found


def _row(scaled: Scaled, method: str) -> Row:
    module = scaled.target.row.module
    row = adapter_row(
        method,
        module,
        scaled.parameter,
        (scaled.width,),
        Layout.VECTOR,
        scaled.target.layers,
        f"{PEFT_PREFIX}{module}.ia3_l",
    )
    return replace(row, disk=(replace(row.disk[0], shape=scaled.peft_shape),))
