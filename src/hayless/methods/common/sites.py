"""Where adapters go: roles, groups, and modules by name or path as PEFT has them, found in a ledger. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from hayless.core.errors import NotSupported, RequestError, unknown
from hayless.core.ledger import Layout, Ledger, Row, Stored
from hayless.core.method import Aspect, Claim
from hayless.core.roles import BLOCK_LINEARS, Role
from hayless.methods.common.targets import GROUPS, NAMES, one_or_many, roles_of

ModuleTargets = Annotated[tuple[str, ...], BeforeValidator(one_or_many), Field(min_length=1)]
"""Roles, groups, and names or paths of modules; `.q` where a module's name is also a role's."""

PEFT_PREFIX = "base_model.model."
"""What PEFT writes before a module's path in its files."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of matrix that gets an adapter, and the layers in which it does."""

    row: Row
    layers: tuple[int, ...]

    @property
    def paths(self) -> list[str]:
        """Paths of the modules."""
        return [_path(self.row, layer) for layer in self.layers or (0,)]


def branch_claims(targets: Sequence[str]) -> tuple[Claim, ...]:
    """It adds branches to its targets. Modules given by name may have any role that takes a branch."""
    by_role = [target for target in targets if target in NAMES]
    roles = roles_of(by_role)
    if len(by_role) < len(targets):
        roles |= BLOCK_LINEARS | {Role.HEAD}
    return (Claim(Aspect.BRANCH, roles),)


def found_claims() -> tuple[Claim, ...]:
    """What methods may claim that make an adapter of files: which modules it is beside stands there."""
    return branch_claims(("blocks", Role.HEAD.value))


def linear_targets(ledger: Ledger, targets: Sequence[str], method: str, *, stacks: bool = False) -> list[Target]:
    """The linear modules that `targets` name, in the ledger's order; stacks of experts among them if `stacks`.

    RequestError for a name that matches nothing; NotSupported for stacked experts, routers, embeddings and a head that
    is tied to them.
    """
    wanted: dict[Row, set[int]] = {}
    for name in targets:
        found = _matches(ledger, name)
        if not found:
            raise unknown(f"{method} target in a {ledger.dims.model_type} model", name, _choices(ledger))
        for row, layers in found:
            wanted.setdefault(row, set()).update(layers)
    chosen = [Target(row, tuple(sorted(wanted[row]))) for row in ledger.rows if row in wanted]
    _refuse(ledger, [target for target in chosen if not (stacks and target.row.layout is Layout.EXPERTS)], method)
    return chosen


def named_paths(ledger: Ledger, name: str, method: str) -> list[str]:
    """The paths of the matrices that a role, a group or a module's name means. RequestError where there are none."""
    found = _matches(ledger, name)
    if not found:
        raise unknown(f"{method} target in a {ledger.dims.model_type} model", name, _choices(ledger))
    return [_path(row, layer) for row, layers in found for layer in layers or (0,)]


def refuse_second(ledger: Ledger, method: str) -> None:
    """RequestError where the model has an adapter."""
    if any(row.role is Role.ADAPTER for row in ledger.rows):
        raise another(method)


def another(method: str) -> RequestError:
    """The refusal of a second adapter."""
    return RequestError(
        f"The model has an adapter already, and {method} would freeze it.",
        hint="Merge the first one before, or add one only.",
    )


def adapter_row(
    method: str, module: str, parameter: str, shape: tuple[int, ...], layout: Layout, layers: tuple[int, ...], disk: str
) -> Row:
    """The row of one trained tensor of an adapter, in float32; `disk` is its name in PEFT's file."""
    held = Stored(f"{module}.{parameter}", shape, "float32", file="adapter")
    there = Stored(disk, shape, "float32", file="adapter")
    return Row(
        Role.ADAPTER, module, parameter, shape, "float32", layout, layers, held=(held,), disk=(there,), method=method
    )


def _matches(ledger: Ledger, target: str) -> list[tuple[Row, tuple[int, ...]]]:
    """Rows of a role, a group or a module's name (the end of its path), each with the layers that match."""
    matrices = [row for row in ledger.rows if len(row.shape) > 1]
    if target in NAMES:
        return [(row, row.layers) for row in matrices if row.role in roles_of([target])]
    ending = "." + target.removeprefix(".")
    found = []
    for row in matrices:
        # Of a stack of experts the parameter may be named as well.
        paths = {
            layer: (f".{_path(row, layer)}", f".{_path(row, layer)}.{row.parameter}") for layer in row.layers or (0,)
        }
        tried = 2 if row.layout is Layout.EXPERTS else 1
        layers = tuple(layer for layer, both in paths.items() if any(path.endswith(ending) for path in both[:tried]))
        if layers:
            found.append((row, layers if row.layers else ()))
    return found


def _refuse(ledger: Ledger, chosen: list[Target], method: str) -> None:
    dense = [row.role.value for row in ledger.rows if row.layers and row.layout in (Layout.LINEAR, Layout.CONV1D)]
    usual = ", ".join(role for role in dict.fromkeys(dense) if Role(role) in GROUPS["blocks"])
    for target in chosen:
        row = target.row
        if row.layout is Layout.EXPERTS:
            raise NotSupported(
                f"{method} does not reach stacked experts: {target.paths[0]}.{row.parameter} holds"
                f" {row.shape[0]} matrices in one tensor.",
                hint=f"Leave the experts out: targets=[{usual}]; or apply lora_moe, which reaches them.",
            )
        if row.role is Role.ROUTER or row.layout not in (Layout.LINEAR, Layout.CONV1D):
            raise NotSupported(
                f"{method} is built for linear modules, and {target.paths[0]} ({row.role.value}) is none.",
                hint=f"Choose from: targets=[{usual}].",
            )
        if row.tied_to:
            raise NotSupported(
                f"{row.module} is tied to {row.tied_to}: merging a branch of one would change both.",
                hint=f"Leave {row.role.value!r} out: targets=[{usual}].",
            )


def _choices(ledger: Ledger) -> list[str]:
    rows = [row for row in ledger.rows if row.layout in (Layout.LINEAR, Layout.CONV1D) and not row.tied_to]
    names = {name for row in rows for name in (row.role.value, row.module.rpartition(".")[2])}
    return [*GROUPS, *names]


def _path(row: Row, layer: int) -> str:
    return row.module.replace("{layer}", str(layer))
