"""What a user can set about retrieving, and what it makes of a ledger. No torch, until a library is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hayless.core.errors import NotSupported
from hayless.core.ledger import Ledger
from hayless.core.method import Claim, MethodConfig
from hayless.core.registry import configure, method_of


class RetrieveConfig(MethodConfig):
    """The modules of a library that are nearest to some examples, as one adapter."""

    method: Literal["retrieve"] = "retrieve"
    library: str = Field("library", description="The library's folder.")
    examples: tuple[str, ...] = Field((), description="Texts of the task; five are enough to find its kin.")
    top: int = Field(3, ge=1, description="How many modules are taken.")
    mix: Literal["outputs", "weights", "one"] = Field(
        "outputs",
        description="outputs: what they add is averaged; weights: A and B are averaged apart; one: the nearest alone.",
    )


def claims(config: RetrieveConfig) -> tuple[Claim, ...]:
    """Those of the adapter that comes of it."""
    made = _nominal(config)
    return method_of(made).claims(made)


def predict(ledger: Ledger, config: RetrieveConfig) -> Ledger:
    """The ledger with the adapter that comes of it, which is the same whatever is found."""
    made = _nominal(config)
    return method_of(made).predict(ledger, made)


def composition(config: RetrieveConfig, folders: Sequence[Path]) -> Any:
    """How the modules that were found become one."""
    how = {"outputs": "concatenated", "weights": "separate", "one": "concatenated"}[config.mix]
    return configure("compose", modules=tuple(str(folder) for folder in folders), how=how)


def _nominal(config: RetrieveConfig) -> Any:
    """The composition of the library's first modules. NotSupported where others would make one of another size."""
    from hayless.methods.adapters.library.store import Library

    library = Library(Path(config.library))
    if len({(module.kind, module.rank) for module in library.modules}) > 1:
        raise NotSupported(
            f"The modules of {config.library} differ in kind or rank: what is found would decide how large it is.",
            hint="Compose them by name (compose, how: svd), or keep a library for each rank.",
        )
    top = 1 if config.mix == "one" else config.top
    return composition(config, [library.path(module.name) for module in library.modules[:top]])
