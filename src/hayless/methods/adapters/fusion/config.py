"""What a user can set about AdapterFusion. No torch, until adapters are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import Claim, MethodConfig
from hayless.core.registry import configured
from hayless.methods.common.sites import found_claims
from hayless.methods.common.trained_modules import trained_module

KINDS = ("LORA", "BOTTLENECK")
"""The modules that are fused, as PEFT's files call them and as ours do."""
_ALIKE = ("method", "sublayers", "form", "activation")
"""What all modules of a fusion have in common; matrices beside which LoRAs are, are compared in a model."""


class FusionConfig(MethodConfig):
    """Trained attention, at each place, over what frozen modules give there; the base is frozen too."""

    method: Literal["fusion"] = "fusion"
    modules: tuple[str | dict[str, Any], ...] = Field(
        (),
        description="Folders of trained adapters, all of them LoRA or all bottlenecks. In a model's record, in the"
        " place of each folder, the adapter's own settings.",
    )
    width: int | None = Field(
        None, ge=1, description="Width of queries and keys; that of what modules give, as in the paper, if not given."
    )
    value: bool = Field(
        True, description="Whether a square matrix of values is trained: the larger part of what is, for wide modules."
    )


def claims(config: FusionConfig) -> tuple[Claim, ...]:
    """Branches beside the modules' targets."""
    return found_claims()


def settled(config: FusionConfig) -> FusionConfig:
    """The same with each folder's settings in its place, which say all about it but its values.

    RequestError for fewer than two modules; NotSupported for modules that are not of one kind.
    """
    found = [trained_module(Path(each), KINDS) if isinstance(each, str) else each for each in config.modules]
    settings = tuple(each if isinstance(each, dict) else _settings(each) for each in found)
    if len(settings) < 2:
        raise RequestError(
            f"fusion has {len(settings)} modules, and attention chooses among several.",
            hint="Name the folders of trained adapters: modules: [...].",
        )
    done = config.model_copy(update={"modules": settings})
    members = members_of(done)
    for field in _ALIKE:
        different = {str(getattr(each, field, None)) for each in members}
        if len(different) > 1:
            raise NotSupported(
                f"fusion: modules of {' and '.join(sorted(different))} ({field}) give different things, which one"
                " attention does not weigh.",
                hint="Fuse modules that are alike.",
            )
    return done


def members_of(config: FusionConfig) -> Sequence[Any]:
    """The modules' configs, of a config that is settled."""
    return configured(each for each in config.modules if isinstance(each, dict))


def _settings(config: MethodConfig) -> dict[str, Any]:
    return {"method": config.method, **config.model_dump(mode="json", exclude_defaults=True)}
