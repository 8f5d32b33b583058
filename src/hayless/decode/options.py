"""What a user can set about generating text. No torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from hayless.core.options import Count, Options

MOST_TOP = 20
"""Likeliest tokens that can be asked for at each place: what OpenAI's API allows."""


class SamplingOptions(Options):
    """How tokens are chosen and when a text ends.

    The filters work in the order temperature, top_k, top_p, min_p, each on what the one before left, as in
    transformers. With temperature 0 the likeliest token is taken and the filters change nothing.
    """

    temperature: float = Field(
        0.0, ge=0, description="Divides the logits; 0 takes the likeliest token, 1 samples from the model as it is."
    )
    top_k: int = Field(0, ge=0, description="Keep this many likeliest tokens; 0 keeps all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Keep the fewest likeliest tokens whose probabilities reach this; 1 keeps all."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest token's probability."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seeds this request's draws, whatever else is generated beside it."
    )
    top_logprobs: int = Field(
        0, ge=0, le=MOST_TOP, description="Also give the log-probabilities of so many likeliest tokens at each place."
    )
    stop: tuple[str, ...] = Field((), description="Strings that end the text; they are not part of it.")
    max_tokens: Count = Field(128, ge=1, description="Tokens generated at most.")
    ignore_end: bool = Field(
        False, description="Go on after the model's end token; for timing a fixed number of tokens."
    )

    @model_validator(mode="after")
    def _stops_say_something(self) -> Self:
        if "" in self.stop:
            raise ValueError("stop strings must not be empty")
        return self
