"""Which matrices get a LoRA branch, and what that makes of a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hayless.core.errors import bad_value
from hayless.core.ledger import Layout, Ledger, Row
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.common.sites import PEFT_PREFIX, Target, adapter_row, linear_targets, refuse_second


def predict(ledger: Ledger, config: LoraConfig) -> Ledger:
    """The ledger after `lora`: two thin matrices a target, which alone are trained."""
    refuse_second(ledger, config.method)
    branches = tuple(row for target in targets_of(ledger, config) for row in _branch(target, config))
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=False), branches)


def targets_of(ledger: Ledger, config: LoraConfig) -> list[Target]:
    """The matrices that `config.targets` names. RequestError for a rank that a matrix does not have."""
    chosen = linear_targets(ledger, config.targets, config.method)
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


def _branch(target: Target, config: LoraConfig) -> Iterator[Row]:
    row, rank = target.row, config.rank
    for name, shape in (("lora_A", (rank, row.in_features)), ("lora_B", (row.out_features, rank))):
        module = f"{row.module}.{name}"
        disk = f"{PEFT_PREFIX}{module}.weight"
        yield adapter_row(config.method, module, "weight", shape, Layout.LINEAR, target.layers, disk)
