"""What a user can set about composing, and what it makes of a ledger. No torch, until adapters are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hayless.core.errors import NotSupported, RequestError
from hayless.core.ledger import Ledger
from hayless.core.method import Claim, MethodConfig
from hayless.core.registry import configure, method_of
from hayless.methods.common.sites import found_claims
from hayless.methods.common.trained_modules import trained_module

How = Literal["concatenated", "separate", "svd", "ties", "dare"]


class ComposeConfig(MethodConfig):
    """The weighted sum of what several adapters add, as one adapter."""

    method: Literal["compose"] = "compose"
    modules: tuple[str, ...] = Field(
        (), description="Folders of LoRA adapters, as PEFT writes them; or all of them bottlenecks."
    )
    weights: tuple[float, ...] | None = Field(
        None,
        description="What each module counts: 1 as it is, −1 undoes what it taught, (1, −1, 1) is an analogy; one over"
        " their number each if not given, which is their average.",
    )
    how: How = Field(
        "concatenated",
        description="concatenated: the sum itself, at the ranks' sum; svd: the sum at a lower rank; separate: A and B"
        " summed apart, which averages weights (AdapterSoup); ties, dare: sums in which modules do not disturb each"
        " other.",
    )
    density: float = Field(
        0.2, gt=0, le=1, description="ties and dare: the share of each module's changes that is kept."
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="svd, ties and dare: the rank that the sum is cut to; the modules' largest if not given.",
    )

    @model_validator(mode="after")
    def _fits(self) -> ComposeConfig:
        if self.weights is not None and len(self.weights) != len(self.modules):
            raise ValueError(f"compose.weights: {len(self.weights)} for {len(self.modules)} modules; give one each")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each module."""
        return self.weights or (1 / len(self.modules),) * len(self.modules)


def claims(config: ComposeConfig) -> tuple[Claim, ...]:
    """Branches beside the modules' targets."""
    return found_claims()


def predict(ledger: Ledger, config: ComposeConfig) -> Ledger:
    """The ledger with the adapter that comes of it."""
    made = result(config)
    return method_of(made).predict(ledger, made)


def result(config: ComposeConfig) -> Any:
    """The config of the adapter that comes of it: scaled by one, with every module's targets."""
    if not config.modules:
        raise RequestError("compose has no modules.", hint="Name the folders of trained adapters: modules: [...].")
    found = [trained_module(Path(folder), ("LORA", "BOTTLENECK")) for folder in config.modules]
    if any(each.method == "bottleneck" for each in found):
        return _bottleneck(config, found)
    ranks = [each.rank for each in found]
    if config.how == "separate" and len(set(ranks)) > 1:
        raise RequestError(
            f"compose: A and B of different ranks ({', '.join(map(str, ranks))}) cannot be summed apart.",
            hint="how: concatenated, or svd, takes modules of any rank.",
        )
    targets = tuple(sorted({target for each in found for target in each.targets}))
    rank = sum(ranks) if config.how == "concatenated" else max(ranks)
    if config.how in ("svd", "ties", "dare") and config.rank is not None:
        rank = config.rank
    return configure("lora", rank=rank, alpha=float(rank), targets=targets)


def _bottleneck(config: ComposeConfig, found: Sequence[Any]) -> Any:
    """The bottleneck that comes of several: as wide as all together, or, averaged, as each of them."""
    if config.how not in ("concatenated", "separate"):
        raise NotSupported(
            f"compose.how = {config.how!r} is for what LoRA adds to a matrix, and a bottleneck adds to none.",
            hint="how: concatenated (their sum) or separate (their weights averaged) takes bottlenecks.",
        )
    alike = ("method", "sublayers", "form", "activation", *(("width", "scaling") if config.how == "separate" else ()))
    for field in alike:
        different = sorted({str(getattr(each, field, None)) for each in found})
        if len(different) > 1:
            raise NotSupported(
                f"compose: modules of {' and '.join(different)} ({field}) do not become one.",
                hint="Compose modules of one kind; how: concatenated takes bottlenecks of any width and scaling.",
            )
    one = found[0]
    if config.how == "separate":
        return one
    options = {field: getattr(one, field) for field in ("sublayers", "form", "activation")}
    return configure("bottleneck", width=sum(each.width for each in found), **options)
