"""What a user can set about mixtures of LoRAs, and what they make of a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from hayless.core.beside import GATE, MIXTURE, PROTOTYPES, thin_names
from hayless.core.errors import bad_value
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.method import Claim, MethodConfig
from hayless.methods.common.sites import (
    PEFT_PREFIX,
    ModuleTargets,
    Target,
    adapter_row,
    branch_claims,
    linear_targets,
    refuse_second,
)


class LoraMoeConfig(MethodConfig):
    """Several LoRAs beside each target, mixed token by token; a LoRA for each expert of a stack; all else is frozen."""

    method: Literal["lora_moe"] = "lora_moe"
    experts: int = Field(4, ge=2, description="LoRAs beside each linear module; a stack has as many as it has experts.")
    rank: int = Field(8, ge=1, description="Width of each LoRA's thin matrices.")
    alpha: float = Field(16.0, gt=0, description="What is added is scaled by alpha / rank.")
    top_k: int | None = Field(
        None, ge=1, description="How many LoRAs a token uses, their shares summing to one; all if not given."
    )
    router: Literal["gate", "arrow"] = Field(
        "gate",
        description="gate: trained with the LoRAs; arrow: the direction that each LoRA amplifies most, frozen"
        " (arXiv:2405.11157), which `retrieve` finds in modules that were trained.",
    )
    temperature: float = Field(1.0, gt=0, description="Scores are divided by this before their softmax.")
    targets: ModuleTargets = Field(
        ("blocks",), description="Where they are added, as `lora` has it; stacks of experts among them."
    )

    @model_validator(mode="after")
    def _fits(self) -> LoraMoeConfig:
        if self.top_k is not None and self.top_k > self.experts:
            raise ValueError(f"lora_moe.top_k = {self.top_k}: there are {self.experts} experts")
        return self

    @property
    def scaling(self) -> float:
        """What the mixture is multiplied by."""
        return self.alpha / self.rank

    @property
    def gate(self) -> str:
        """What a mixture calls the matrix whose product with a token scores the LoRAs."""
        return GATE if self.router == "gate" else PROTOTYPES


def claims(config: LoraMoeConfig) -> tuple[Claim, ...]:
    """It adds branches to its targets."""
    return branch_claims(config.targets)


def predict(ledger: Ledger, config: LoraMoeConfig) -> Ledger:
    """The ledger after `lora_moe`: gates and thin matrices, which alone are trained; prototypes are not."""
    refuse_second(ledger, config.method)
    rows = tuple(row for target in targets_of(ledger, config) for row in _rows(target, config))
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=False), rows)


def targets_of(ledger: Ledger, config: LoraMoeConfig) -> list[Target]:
    """The matrices and stacks that `config.targets` names. RequestError for a rank that one does not have, and for
    prototypes where the model's own router chooses."""
    found = linear_targets(ledger, config.targets, config.method, stacks=config.router == "gate")
    for target in found:
        limit = min(target.row.in_features, target.row.out_features)
        if config.rank > limit:
            raise bad_value(
                "lora_moe.rank",
                config.rank,
                allowed=f"1 to {limit}",
                hint=f"{target.paths[0]} has {target.row.in_features} inputs and {target.row.out_features} outputs.",
            )
    return found


def is_stack(target: Target) -> bool:
    """Whether each expert of a stack gets a LoRA, and the model's own router is their gate."""
    return target.row.layout is Layout.EXPERTS


def tensors_of(target: Target, config: LoraMoeConfig) -> dict[str, tuple[int, ...]]:
    """The tensors in a target's module: names and shapes.

    Beside a linear module the thin matrices of all LoRAs lie below each other in A, and beside each other in B.
    """
    row, rank = target.row, config.rank
    if is_stack(target):
        a, b = thin_names(row.parameter)
        return {a: (row.shape[0], rank, row.in_features), b: (row.shape[0], row.out_features, rank)}
    together = config.experts * rank
    return {
        f"{MIXTURE}.{config.gate}.weight": (config.experts, row.in_features),
        f"{MIXTURE}.lora_A.weight": (together, row.in_features),
        f"{MIXTURE}.lora_B.weight": (row.out_features, together),
    }


def _rows(target: Target, config: LoraMoeConfig) -> Iterator[Row]:
    layout = Layout.EXPERTS if is_stack(target) else Layout.LINEAR
    for name, shape in tensors_of(target, config).items():
        inner, _, parameter = f"{target.row.module}.{name}".rpartition(".")
        disk = f"{PEFT_PREFIX}{inner}.{parameter}"
        made = adapter_row(config.method, inner, parameter, shape, layout, target.layers, disk)
        yield replace(made, trainable=not inner.endswith(PROTOTYPES))
