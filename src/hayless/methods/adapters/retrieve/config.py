"""What a user can set about retrieving, and what it makes of a ledger. No torch, until a library is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from hayless.core.errors import NotSupported, RequestError
from hayless.core.ledger import Ledger
from hayless.core.method import Claim, MethodConfig
from hayless.core.registry import configure, method_of
from hayless.methods.common.sites import found_claims
from hayless.methods.common.trained_modules import trained_module

if TYPE_CHECKING:
    from hayless.methods.adapters.library.store import Library


class RetrieveConfig(MethodConfig):
    """The modules of a library that are nearest to some examples, or to each token, as one adapter."""

    method: Literal["retrieve"] = "retrieve"
    library: str = Field("library", description="The library's folder.")
    examples: tuple[str, ...] = Field((), description="Texts of the task; five are enough to find its kin.")
    per: Literal["task", "token"] = Field(
        "task",
        description="task: modules near the examples, the same for every token; token: each token chooses among the"
        " modules on its way (Arrow, arXiv:2405.11157), and needs no examples.",
    )
    top: int = Field(3, ge=1, description="How many modules are taken; per token, how many each token uses.")
    mix: Literal["outputs", "weights", "one"] = Field(
        "outputs",
        description="outputs: what they add is averaged; weights: A and B are averaged apart; one: the nearest alone.",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="Shares are the softmax of the modules' scores over this; if not given, equal per task and 1 per"
        " token.",
    )
    among: int | None = Field(
        None,
        ge=2,
        description="per token: how many modules tokens choose among, the nearest to the examples; all if not given.",
    )

    @model_validator(mode="after")
    def _fits(self) -> RetrieveConfig:
        if self.per == "token" and self.mix == "weights":
            raise ValueError("retrieve.mix = 'weights' is for a task: matrices are not averaged anew for each token")
        if self.per == "task" and self.among is not None:
            raise ValueError("retrieve.among is for per: token; top says how many are taken for a task")
        if self.among is not None and not self.examples:
            raise ValueError("retrieve.among needs examples, by which the nearest modules are found")
        return self

    @property
    def taken(self) -> int:
        """How many modules are mixed."""
        return 1 if self.mix == "one" else self.top


def claims(config: RetrieveConfig) -> tuple[Claim, ...]:
    """Branches beside the modules' targets."""
    return found_claims()


def predict(ledger: Ledger, config: RetrieveConfig) -> Ledger:
    """The ledger with the adapter that comes of it, which is the same whatever is found."""
    library = opened(config)
    folders = [library.path(module.name) for module in library.modules]
    if config.per == "token":
        made = mixture(config, folders[: config.among])
    else:
        made = composition(config, folders[: config.taken])
    return method_of(made).predict(ledger, made)


def composition(config: RetrieveConfig, folders: Sequence[Path], shares: tuple[float, ...] | None = None) -> Any:
    """How the modules that were found become one."""
    how = {"outputs": "concatenated", "weights": "separate", "one": "concatenated"}[config.mix]
    return configure("compose", modules=tuple(str(folder) for folder in folders), weights=shares, how=how)


def mixture(config: RetrieveConfig, folders: Sequence[Path]) -> Any:
    """The mixture of LoRAs that the modules are, each scaled by one. RequestError for fewer than two."""
    if len(folders) < 2:
        raise RequestError(
            f"{config.library} has {len(folders)} modules: tokens have nothing to choose.", hint="Add modules to it."
        )
    one = trained_module(folders[0])
    return configure(
        "lora_moe",
        experts=len(folders),
        rank=one.rank,
        alpha=float(one.rank),
        top_k=min(config.taken, len(folders)),
        router="arrow",
        temperature=config.temperature or 1.0,
        targets=one.targets,
    )


def opened(config: RetrieveConfig) -> Library:
    """The library. NotSupported where what is found would decide how large the adapter is."""
    from hayless.methods.adapters.library.store import Library

    library = Library(Path(config.library))
    if len({(module.kind, module.rank) for module in library.modules}) > 1:
        raise NotSupported(
            f"The modules of {config.library} differ in kind or rank: what is found would decide how large it is.",
            hint="Compose them by name (compose, how: svd), or keep a library for each rank.",
        )
    return library
