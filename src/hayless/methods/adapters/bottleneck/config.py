"""What a user can set about bottlenecks, and what they make of a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from pydantic import Field

from hayless.core.beside import entrance
from hayless.core.errors import bad_value
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.methods.common.sites import PEFT_PREFIX, Target, adapter_row, refuse_second
from hayless.methods.common.sublayers import LAST, Sublayers, sublayer_targets


class BottleneckConfig(MethodConfig):
    """A trained network of two layers with a narrow middle, added to what sublayers give; everything else is frozen."""

    method: Literal["bottleneck"] = "bottleneck"
    width: int = Field(16, ge=1, description="Width of the middle; the paper tried 8, 64 and 256.")
    sublayers: Sublayers = Field(
        "both", description="Behind which sublayers: both (Houlsby), feed_forward alone (Pfeiffer), attention alone."
    )
    form: Literal["serial", "parallel"] = Field(
        "serial", description="serial: reads what the sublayer gives; parallel: what it is given (arXiv:2110.04366)."
    )
    activation: Literal["gelu", "relu"] = Field("gelu", description="The function between the two layers.")
    scaling: float = Field(1.0, gt=0, description="What is added is multiplied by this; 4 in arXiv:2110.04366.")
    initial: Literal["near_identity", "zero"] = Field(
        "near_identity",
        description="near_identity: both layers normal, deviation 0.01, cut at two deviations, as the paper; zero: the"
        " second layer zero, so that nothing changes at first.",
    )

    @property
    def kind(self) -> str:
        """What modules call it."""
        return f"{self.form}_{self.activation}"


def claims(config: BottleneckConfig) -> tuple[Claim, ...]:
    """It adds branches behind its sublayers."""
    return (Claim(Aspect.BRANCH, frozenset(LAST[config.sublayers])),)


def predict(ledger: Ledger, config: BottleneckConfig) -> Ledger:
    """The ledger after `bottleneck`: two layers with biases a sublayer, which alone are trained."""
    refuse_second(ledger, config.method)
    rows = tuple(row for target in targets_of(ledger, config) for row in _rows(target, config))
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=False), rows)


def targets_of(ledger: Ledger, config: BottleneckConfig) -> list[Target]:
    """The modules in which the sublayers end. NotSupported for experts, and where no input of a sublayer is known;
    RequestError for a middle that is as wide as what is around it."""
    found = sublayer_targets(ledger, config.sublayers, config.method)
    for target in found:
        if config.width >= target.row.out_features:
            raise bad_value(
                "bottleneck.width",
                config.width,
                allowed=f"1 to {target.row.out_features - 1}",
                hint=f"{target.paths[0]} gives {target.row.out_features} numbers: a middle as wide is no bottleneck.",
            )
        if config.form == "parallel":
            entrance(ledger, target.row)
    return found


def _rows(target: Target, config: BottleneckConfig) -> Iterator[Row]:
    row, wide = target.row, target.row.out_features
    for part, shape in (("down", (config.width, wide)), ("up", (wide, config.width))):
        module = f"{row.module}.{config.kind}.{part}"
        for parameter, size, layout in (("weight", shape, Layout.LINEAR), ("bias", shape[:1], Layout.VECTOR)):
            disk = f"{PEFT_PREFIX}{module}.{parameter}"
            yield adapter_row(config.method, module, parameter, size, layout, target.layers, disk)
