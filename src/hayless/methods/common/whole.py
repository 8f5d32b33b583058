"""Modules that train whole beside an adapter, as PEFT's modules_to_save: norms, embeddings, a head. No torch.

They are trained where they are, and what they were is kept beside, so that an adapter can be taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hayless.core.errors import NotSupported, unknown
from hayless.core.ledger import Layout, Ledger, Row, Stored
from hayless.core.roles import Role
from hayless.methods.common.sites import PEFT_PREFIX, Target
from hayless.methods.common.targets import NAMES

_ROLES = (*NAMES, Role.NORM.value)


def kept_name(parameter: str) -> str:
    """What the values of a parameter before training are called in its module."""
    return f"before_{parameter}"


def whole_targets(ledger: Ledger, names: Sequence[str], method: str) -> list[Target]:
    """Every parameter of the modules that `names` mean: roles, or ends of their paths, as PEFT reads modules_to_save.

    RequestError for a name that matches nothing; NotSupported for experts, packed weights and tied ones.
    """
    wanted: dict[Row, set[int]] = {}
    for name in names:
        found = False
        for row in ledger.rows:
            layers = [layer for layer in row.layers or (0,) if _means(name, row, layer)]
            if layers:
                found = True
                wanted.setdefault(row, set()).update(layers)
        if not found:
            choices = {row.role.value for row in ledger.rows} | {row.module.rpartition(".")[2] for row in ledger.rows}
            raise unknown(f"module to train whole in a {ledger.dims.model_type} model", name, sorted(choices))
    chosen = [Target(row, tuple(sorted(wanted[row])) if row.layers else ()) for row in ledger.rows if row in wanted]
    tied = {row.tied_to for row in ledger.rows if row.tied_to}
    for target in chosen:
        row = target.row
        if row.tied_to or row.module in tied:
            raise NotSupported(
                f"{target.paths[0]} is tied to another module: a file that holds one of them gives another model.",
                hint=f"Leave {row.role.value} out of {method}.whole.",
            )
        if row.layout is Layout.EXPERTS or row.method:
            raise NotSupported(
                f"{target.paths[0]} cannot train whole: it is {'packed' if row.method else 'a stack of experts'}.",
                hint=f"Leave {row.role.value} out of {method}.whole.",
            )
    return chosen


def kept_row(target: Target, method: str) -> Row:
    """What a parameter was, in memory; on disk the row is the trained one, as PEFT names it."""
    row = target.row
    held = Stored(f"{row.module}.{kept_name(row.parameter)}", row.shape, row.dtype, file="")
    disk = Stored(f"{PEFT_PREFIX}{row.module}.{row.parameter}", row.shape, "float32", file="adapter")
    layout = Layout.VECTOR if len(row.shape) == 1 else Layout.TABLE
    return replace(
        row,
        role=Role.ADAPTER,
        parameter=kept_name(row.parameter),
        layout=layout,
        layers=target.layers,
        trainable=False,
        held=(held,),
        disk=(disk,),
        method=method,
    )


def _means(name: str, row: Row, layer: int) -> bool:
    if row.role is Role.ADAPTER:
        return False
    if name in _ROLES:
        return row.role.value == name
    return row.module.replace("{layer}", str(layer)).endswith(name)
