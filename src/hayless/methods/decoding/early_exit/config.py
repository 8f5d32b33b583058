"""What a user can set about early exit. No torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.method import MethodConfig


class EarlyExitConfig(MethodConfig):
    """A token leaves the model where it is sure of the next one, and the layers behind are skipped."""

    method: Literal["early_exit"] = "early_exit"
    confidence: Literal["softmax", "state", "classifier", "schedule"] = Field(
        "softmax",
        description="What says that the model is sure: softmax (how far the likeliest token is before the second, by"
        " the model's own head), state (the cosine of a layer's output and its input), classifier (a line between"
        " states that is learnt from `text`), or schedule: nothing, tokens leave earlier the later they come.",
    )
    threshold: float = Field(
        0.9, ge=0, le=1, description="Leave where confidence is at least this; 1 never does. Not for schedule."
    )
    risk: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Find the threshold on `text`: the share of tokens that differ from the whole model's is at most"
        " this, but for a chance of `delta`.",
    )
    delta: float = Field(0.05, gt=0, lt=1, description="Chance that the text that was looked at misleads.")
    text: str | None = Field(None, min_length=1, description="A file or folder of text to calibrate on.")
    windows: int = Field(256, ge=2, le=100_000, description="Pieces of that text, at most; more allow a smaller risk.")
    least: int | None = Field(
        None, ge=1, description="Layers that every token goes through; a quarter of them, rounded up, if not given."
    )
    heads: Literal["shared", "learnt"] = Field(
        "shared",
        description="What the model's own head is shown behind an early layer: the state as it is, or what a linear map"
        " learnt from `text` makes of it, one for each layer.",
    )
    every: int = Field(1, ge=1, description="Look at every n-th layer from there on; looking costs time, too.")
    over: int = Field(128, ge=2, description="The schedule has come down to `least` after so many tokens.")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.confidence == "schedule" and self.risk is not None:
            raise ValueError("risk finds a threshold, and a schedule has none: give another confidence")
        if self.needs_text and self.text is None:
            what = "the confidence classifier" if self.confidence == "classifier" else "heads learnt"
            what = "risk" if self.risk is not None else what
            raise ValueError(f"{what} needs text to learn from: give text, a file or folder")
        if not self.needs_text and self.text is not None:
            raise ValueError(
                "text is for a risk, for the confidence classifier or for heads learnt: give one, or leave it out"
            )
        return self

    @property
    def needs_text(self) -> bool:
        """Whether something is found out from text before tokens are made."""
        return self.risk is not None or self.fits

    @property
    def fits(self) -> bool:
        """Whether something is fitted to text: not to that which a threshold is found on."""
        return self.confidence == "classifier" or self.heads == "learnt"
