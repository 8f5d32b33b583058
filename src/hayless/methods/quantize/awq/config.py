"""What a user can set about AWQ."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.common.integers import CalibratedConfig


class AWQConfig(CalibratedConfig):
    """Channels with large inputs are scaled up before rounding, and what feeds them is scaled down."""

    method: Literal["awq"] = "awq"
    symmetric: bool = Field(
        False, description="Zero is the middle code; otherwise each scale has a zero of its own (8 bits more)."
    )
    grid: int = Field(20, ge=1, le=1000, description="Exponents that are tried, evenly from 0 to below 1.")
    scales: Literal["inputs", "both"] = Field(
        "both",
        description="inputs: scales are powers of the inputs' mean magnitude, as in the paper; both: also such powers"
        " over those of the weights' own magnitude, as in the authors' later code; what loses least is taken.",
    )
    clip: bool = Field(True, description="Search the range of each scale for the least output error.")
    clip_attention: bool = Field(
        True, description="Those of queries and keys too, which the authors' code leaves whole; false leaves them so."
    )
