"""What a user can set about GPTQ."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.common.integers import CalibratedConfig


class GPTQConfig(CalibratedConfig):
    """Weights are rounded column by column, each error made up for by the columns after it."""

    method: Literal["gptq"] = "gptq"
    act_order: bool = Field(
        False,
        description="Round the columns with the largest inputs first; scales are then those of the whole weights.",
    )
    clip: bool = Field(
        True, description="Search each scale for the least squared error, instead of covering the largest weight."
    )
    damp: float = Field(
        0.01, gt=0, le=1, description="Added to the Hessian's diagonal, as a share of its mean (the paper's 1%)."
    )
