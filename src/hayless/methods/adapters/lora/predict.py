"""Which matrices get a LoRA branch, and what that makes of a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hayless.core.errors import NotSupported, RequestError, bad_value, unknown
from hayless.core.ledger import Layout, Ledger, Row, Stored
from hayless.core.roles import Role
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.common.targets import GROUPS, NAMES, roles_of

PREFIX = "base_model.model."
"""What PEFT writes before a module's path in its files."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of matrix that gets a branch, and the layers in which it does."""

    row: Row
    layers: tuple[int, ...]

    @property
    def paths(self) -> list[str]:
        """Paths of the modules."""
        return [_path(self.row, layer) for layer in self.layers or (0,)]


def predict(ledger: Ledger, config: LoraConfig) -> Ledger:
    """The ledger after `lora`: two thin matrices a target, which alone are trained."""
    if any(row.role is Role.ADAPTER for row in ledger.rows):
        raise another()
    branches = tuple(row for target in targets_of(ledger, config) for row in _branch(target, config))
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=False), branches)


def targets_of(ledger: Ledger, config: LoraConfig) -> list[Target]:
    """The matrices that `config.targets` names, in the ledger's order.

    RequestError for a name that matches nothing and a rank that a matrix does not have; NotSupported for stacked
    experts, routers, embeddings and a head that is tied to them.
    """
    wanted: dict[Row, set[int]] = {}
    for name in config.targets:
        found = _matches(ledger, name)
        if not found:
            raise unknown(f"lora target in a {ledger.dims.model_type} model", name, _choices(ledger))
        for row, layers in found:
            wanted.setdefault(row, set()).update(layers)
    chosen = [Target(row, tuple(sorted(wanted[row]))) for row in ledger.rows if row in wanted]
    _refuse(ledger, chosen)
    for target in chosen:
        limit = min(target.row.in_features, target.row.out_features)
        if config.rank > limit:
            raise bad_value(
                "lora.rank",
                config.rank,
                allowed=f"1 to {limit}",
                hint=f"{target.paths[0]} has {target.row.in_features} inputs and {target.row.out_features} outputs: no"
                " update of it has a higher rank.",
            )
    return chosen


def another() -> RequestError:
    """The refusal of a second adapter."""
    return RequestError(
        "The model has an adapter already, and lora would freeze it.",
        hint="Merge the first one before, or add one only.",
    )


def _matches(ledger: Ledger, target: str) -> list[tuple[Row, tuple[int, ...]]]:
    """Rows of a role, a group or a module's name (the end of its path), each with the layers that match."""
    matrices = [row for row in ledger.rows if len(row.shape) > 1]
    if target in NAMES:
        return [(row, row.layers) for row in matrices if row.role in roles_of([target])]
    ending = "." + target.removeprefix(".")
    found = []
    for row in matrices:
        layers = tuple(layer for layer in row.layers or (0,) if f".{_path(row, layer)}".endswith(ending))
        if layers:
            found.append((row, layers if row.layers else ()))
    return found


def _refuse(ledger: Ledger, chosen: list[Target]) -> None:
    dense = [row.role.value for row in ledger.rows if row.layers and row.layout in (Layout.LINEAR, Layout.CONV1D)]
    usual = ", ".join(role for role in dict.fromkeys(dense) if Role(role) in GROUPS["blocks"])
    for target in chosen:
        row = target.row
        if row.layout is Layout.EXPERTS:
            raise NotSupported(
                f"lora does not reach stacked experts: {target.paths[0]}.{row.parameter} holds"
                f" {row.shape[0]} matrices in one tensor.",
                hint=f"Leave the experts out: targets=[{usual}].",
            )
        if row.role is Role.ROUTER or row.layout not in (Layout.LINEAR, Layout.CONV1D):
            raise NotSupported(
                f"lora is built for linear modules, and {target.paths[0]} ({row.role.value}) is none.",
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


def _branch(target: Target, config: LoraConfig) -> Iterator[Row]:
    row, rank = target.row, config.rank
    for name, shape in (("lora_A", (rank, row.in_features)), ("lora_B", (row.out_features, rank))):
        module = f"{row.module}.{name}"
        held = Stored(f"{module}.weight", shape, "float32", file="adapter")
        yield Row(
            Role.ADAPTER,
            module,
            "weight",
            shape,
            "float32",
            Layout.LINEAR,
            target.layers,
            held=(held,),
            disk=(replace(held, name=PREFIX + held.name),),
            method=config.method,
        )


def _path(row: Row, layer: int) -> str:
    return row.module.replace("{layer}", str(layer))
