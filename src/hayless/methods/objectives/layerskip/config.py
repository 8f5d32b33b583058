"""What a user can set about LayerSkip's training. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hayless.core.method import MethodConfig


class LayerSkipConfig(MethodConfig):
    """Drops layers at random, the last ones most, and learns to predict the next token from early layers as well.

    The defaults are those the paper trains Llama-2-7B further with (section 5 and its table of hyperparameters).
    """

    method: Literal["layerskip"] = "layerskip"
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of rows that the last layer is dropped for; the first one never is."
    )
    dropout_curriculum: Literal["none", "exponential"] = Field(
        "none", description="exponential: dropping starts at 0 and reaches its share in the end, for new models."
    )
    early_loss: float = Field(
        0.2, ge=0, le=1, description="e_scale: how much the losses of early layers count beside the last one's."
    )
    weights: Literal["depth", "even"] = Field(
        "depth",
        description="depth: early losses count more the deeper their layer lies, as in the paper, for tokens that leave"
        " late; even: each counts early_loss times the last one's, for first layers that draft.",
    )
    curriculum: Literal["rotational", "gradual", "none"] = Field(
        "rotational",
        description="Which early layers have a loss at an update: every n-th, in turn; the last ones at first and all"
        " from the middle of training on; or all of them, always.",
    )
    every: int = Field(8, ge=1, description="The n of the rotational curriculum.")
    exits: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Behind how many layers tokens will leave, or drafts be made, where that is known: only there early"
        " layers have a loss, and only layers behind the first of them are dropped. All, if none are given.",
    )

    @model_validator(mode="after")
    def _exits_have_losses(self) -> Self:
        if 1 in self.exits and self.weights == "depth":
            raise ValueError("exits has 1, and the weights depth give the first layer no loss: give the weights even")
        return self
