"""What methods share that write and read other libraries' folders: which modules are packed there. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.ledger import Ledger, Row
from hayless.core.packing import disk_module, is_replaceable
from hayless.core.roles import BLOCK_LINEARS


def check_fields(library: str, found: Mapping[str, Any], known: Collection[str]) -> None:
    """NotSupported for fields of a `quantization_config` that are not known, so that none is passed over in silence."""
    strange = sorted(found.keys() - known)
    if strange:
        raise NotSupported(f"quantization_config of {library} has {', '.join(strange)}, which is not honoured here.")


def linears_left(ledger: Ledger) -> list[str]:
    """The paths of the linear modules that are not packed, those that share their weight with a table included."""
    return [path for row in _linears(ledger) if not row.ecosystem for path in _paths(row.module, row)]


def targets_that_are(library: str, packed: Iterable[str], ledger: Ledger) -> tuple[str, ...]:
    """The targets that stand for the modules `packed` (by their names in files) of a model before it was packed.

    NotSupported where a role is packed in some places only, and for modules that are no linear modules of this model.
    """
    wanted = set(packed)
    linears = [row for row in _linears(ledger) if not row.tied_to]
    roles = {row.role for row in linears if wanted & set(_paths(disk_module(row), row))}
    covered = {path for row in linears if row.role in roles for path in _paths(disk_module(row), row)}
    for path in sorted(covered - wanted):
        raise NotSupported(f"{library} left {path} as it was and packed others of its role; that is not read here.")
    for path in sorted(wanted - covered):
        raise NotSupported(
            f"{library} packed {path}, which this {ledger.dims.model_type} model has no linear module for."
        )
    blocks = {row.role for row in ledger.rows if row.is_matrix} & BLOCK_LINEARS
    if blocks <= roles:
        return ("blocks", *sorted(role.value for role in roles - blocks))
    return tuple(sorted(role.value for role in roles))


def _linears(ledger: Ledger) -> Iterator[Row]:
    return (row for row in ledger.rows if is_replaceable(ledger, row))


def _paths(template: str, row: Row) -> list[str]:
    return [template.replace("{layer}", str(layer)) for layer in row.layers or (0,)]
