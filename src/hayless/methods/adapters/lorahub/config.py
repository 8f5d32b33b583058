"""What a user can set about LoraHub, and what it makes of a ledger. No torch, until adapters are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from hayless.core.ledger import Ledger
from hayless.core.method import Claim, MethodConfig
from hayless.core.options import Options
from hayless.core.registry import configure, method_of
from hayless.methods.common.sites import found_claims


class Example(Options):
    """A prompt, and the answer that should follow it."""

    prompt: str = Field(description="What is given.")
    answer: str = Field(min_length=1, description="What should follow.")


class LoraHubConfig(MethodConfig):
    """A and B of trained modules are summed apart, with weights that make a few examples likely."""

    method: Literal["lorahub"] = "lorahub"
    modules: tuple[str, ...] = Field((), description="Folders of LoRA adapters of one rank.")
    examples: tuple[Example, ...] = Field((), description="A few prompts of the task with their answers.")
    steps: int = Field(40, ge=1, description="Weights that are tried.")
    bound: float = Field(1.5, gt=0, description="Weights lie between this and its negative.")
    penalty: float = Field(0.05, ge=0, description="Nats that are added for the mean size of the weights.")


def claims(config: LoraHubConfig) -> tuple[Claim, ...]:
    """Branches beside the modules' targets."""
    return found_claims()


def predict(ledger: Ledger, config: LoraHubConfig) -> Ledger:
    """The ledger with the adapter that comes of it."""
    made = composition(config)
    return method_of(made).predict(ledger, made)


def composition(config: LoraHubConfig, weights: Sequence[float] | None = None) -> Any:
    """The modules as one, with these weights."""
    given = None if weights is None else tuple(weights)
    return configure("compose", modules=config.modules, weights=given, how="separate")
