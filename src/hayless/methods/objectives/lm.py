"""Next-token prediction: the mean negative log-likelihood of every token given those before it."""

from __future__ import annotations

from typing import Literal

from hayless.core.method import Method, MethodConfig, Part, unchanged
from hayless.methods.objectives.packed import packed_rows


class LmConfig(MethodConfig):
    """No options: every token of the text counts the same."""

    method: Literal["lm"] = "lm"


METHOD = Method(
    name="lm",
    part=Part.OBJECTIVE,
    summary="Predict the next token of plain text (pretraining)",
    config=LmConfig,
    implementation="hayless.methods.objectives.likelihood:LanguageModelling",
    predict=unchanged,
    predict_training=packed_rows,
)
