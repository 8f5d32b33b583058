"""Who adapts a model: a transform and an optimizer, adapters of as nearly the same number of trained parameters as each
method's sizes allow.

The reference is LoRA of rank 4 beside every linear layer of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hayless.core.families import ledger_of
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.registry import configure, method_of
from hayless.model.anatomy import dims_of_model
from hayless.model.load import load_model

UNTRAINED, FULL, LORA, LOMO, MODULE = "as it was", "full, adamw", "lora", "full, lomo", "module"
_RANK = 4
_PROMPT = 576
"""Virtual tokens at most: a held-out document must fit behind them."""


@dataclass(frozen=True, slots=True)
class Way:
    """`rate` is the learning rate around which others are tried. `clip` is the largest norm of a gradient."""

    name: str
    optimizer: str
    rate: float
    transform: MethodConfig | None = None
    clip: float | None = 1.0


@cache
def ways(model: Path) -> dict[str, Way]:
    """Every way to adapt the model in a folder, by name."""
    ledger = ledger_of(dims_of_model(load_model(model)))
    lora = configure("lora", rank=_RANK)
    wanted = trained(ledger, lora)

    def sized(method: str, sizes: Sequence[dict[str, Any]]) -> MethodConfig:
        found = [configure(method, **size) for size in sizes]
        return min(found, key=lambda config: abs(trained(ledger, config) - wanted))

    counts = [{"tokens": count} for count in range(1, _PROMPT + 1)]
    mixed = [{"experts": experts, "rank": rank} for experts in (2, 3, 4) for rank in range(1, _RANK + 1)]
    found = [
        Way(FULL, "adamw", 3e-4),
        Way("full, sgd", "sgd", 0.3),
        # In the backward pass, where the norm of all gradients is not known yet.
        Way(LOMO, "lomo", 0.1, clip=None),
        Way("full, adalomo", "adalomo", 3e-3, clip=None),
        Way(LORA, "adamw", 3e-3, lora),
        Way("lora+", "adamw", 1e-3, configure("lora", rank=_RANK, rate_ratio=16)),
        Way("dora", "adamw", 3e-3, sized("lora", [{"rank": rank, "dora": True} for rank in range(1, _RANK + 1)])),
        Way("pissa", "adamw", 1e-3, configure("lora", rank=_RANK, initial="pissa")),
        Way("lora_moe", "adamw", 3e-3, sized("lora_moe", mixed)),
        Way("bottleneck", "adamw", 3e-3, sized("bottleneck", [{"width": width} for width in range(1, 65)])),
        Way("prefix", "adamw", 1e-2, sized("prefix", [{**count, "projection": None} for count in counts])),
        Way("prompt", "adamw", 3e-2, sized("prompt", counts)),
        Way("ia3", "adamw", 1e-2, configure("ia3")),
        Way("bitfit", "adamw", 3e-3, configure("bitfit")),
        Way(MODULE, "adamw", 3e-3, lora),
    ]
    return {way.name: way for way in found}


def trained(ledger: Ledger, config: MethodConfig) -> int:
    """Parameters that train after a transform, by prediction."""
    return method_of(config).predict(ledger, config).trainable
