"""Which matrices get a LoRA branch, what trains whole, and what that makes of a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hayless.core.beside import MAGNITUDE
from hayless.core.errors import RequestError, bad_value
from hayless.core.ledger import Layout, Ledger, Row
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.common.sites import (
    PEFT_PREFIX,
    Target,
    adapter_row,
    linear_targets,
    named_paths,
    refuse_second,
)
from hayless.methods.common.whole import kept_row, whole_targets

START = "lora_start"
"""Where the factors lie that a branch began with, if it began with singular vectors: its A and −B, frozen."""


@dataclass(frozen=True, slots=True)
class Site:
    """Matrices of one kind that get a branch of one rank, alpha and scaling."""

    target: Target
    rank: int
    alpha: float
    scaling: float


def predict(ledger: Ledger, config: LoraConfig) -> Ledger:
    """The ledger after `lora`: two thin matrices a target, which alone are trained beside what trains whole."""
    refuse_second(ledger, config.method)
    whole = whole_targets(ledger, config.whole, config.method)
    rows = [row for site in sites_of(ledger, config) for row in _rows(site, config)]
    rows += [kept_row(target, config.method) for target in whole]
    parts = {target.row: target for target in whole}
    changed: list[Row] = []
    for row in ledger.rows:
        chosen = parts[row].layers if row in parts else None
        rest = tuple(layer for layer in row.layers if layer not in (chosen or ()))
        if chosen is not None:
            changed.append(replace(row, layers=chosen, trainable=True))
        if chosen is None or rest:
            changed.append(replace(row, layers=rest, trainable=False))
    return replace(ledger, rows=(*changed, *rows), methods=(*ledger.methods, config.method))


def sites_of(ledger: Ledger, config: LoraConfig) -> list[Site]:
    """The matrices that `config.targets` names, each with its rank. RequestError for a rank that a matrix does not
    have, and for ranks and alphas of what is no target."""
    chosen = linear_targets(ledger, config.targets, config.method)
    paths = {path for target in chosen for path in target.paths}
    ranks = _by_path(ledger, config, "ranks", config.ranks, paths)
    alphas = _by_path(ledger, config, "alphas", config.alphas, paths)
    found = []
    for target in chosen:
        layers: dict[tuple[int, float], list[int]] = {}
        for layer, path in zip(target.layers or (0,), target.paths, strict=True):
            layers.setdefault((int(ranks.get(path, config.rank)), alphas.get(path, config.alpha)), []).append(layer)
        for (rank, alpha), where in layers.items():
            part = replace(target, layers=tuple(where) if target.layers else ())
            _check_rank(part, rank, config)
            found.append(Site(part, rank, alpha, config.scale(rank, alpha)))
    return found


def _by_path(
    ledger: Ledger, config: LoraConfig, field: str, given: Mapping[str, float], targets: set[str]
) -> dict[str, float]:
    """What a field gives for each path; of two names the first counts, as in PEFT."""
    found: dict[str, float] = {}
    for name, value in given.items():
        meant = targets & set(named_paths(ledger, name, config.method))
        if not meant:
            raise RequestError(
                f"{config.method}.{field} names {name}, which is no target.", hint="Name it among the targets too."
            )
        for path in meant:
            found.setdefault(path, value)
    return found


def _check_rank(target: Target, rank: int, config: LoraConfig) -> None:
    row = target.row
    doubled = config.initial == "pissa"
    limit = min(row.in_features, row.out_features)
    if rank * (1 + doubled) > limit:
        why = " What begins with singular vectors has twice the rank in files." if doubled else ""
        raise bad_value(
            "lora.rank",
            rank,
            allowed=f"1 to {limit // (1 + doubled)}",
            hint=f"{target.paths[0]} has {row.in_features} inputs and {row.out_features} outputs: no update of it has a"
            f" higher rank.{why}",
        )


def _rows(site: Site, config: LoraConfig) -> Iterator[Row]:
    row, rank, layers = site.target.row, site.rank, site.target.layers
    doubled = config.initial == "pissa"
    for part in ("A", "B"):
        module = f"{row.module}.lora_{part}"
        made = adapter_row(
            config.method,
            module,
            "weight",
            _thin(row, part, rank),
            Layout.LINEAR,
            layers,
            f"{PEFT_PREFIX}{module}.weight",
        )
        if doubled:
            made = replace(made, disk=(replace(made.disk[0], shape=_thin(row, part, 2 * rank)),))
        yield made
    for part in ("A", "B") if doubled else ():
        module = f"{row.module}.{START}_{part}"
        made = adapter_row(config.method, module, "weight", _thin(row, part, rank), Layout.LINEAR, layers, "")
        yield replace(made, trainable=False, disk=(replace(made.disk[0], file=""),))
    if config.dora:
        disk = f"{PEFT_PREFIX}{row.module}.{MAGNITUDE}"
        yield adapter_row(config.method, row.module, MAGNITUDE, (row.out_features,), Layout.VECTOR, layers, disk)


def _thin(row: Row, part: str, rank: int) -> tuple[int, int]:
    return (rank, row.in_features) if part == "A" else (row.out_features, rank)
