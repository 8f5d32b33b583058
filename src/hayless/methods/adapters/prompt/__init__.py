"""Prompt tuning: trained embeddings before every text."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.prompt.config import PromptConfig, predict
from hayless.methods.common.virtual_rows import claims

METHOD = Method(
    name="prompt",
    part=Part.TRANSFORM,
    summary="Train the embeddings of a few tokens before every text; the base is frozen",
    config=PromptConfig,
    implementation="hayless.methods.adapters.prompt.transform:Prompt",
    predict=predict,
    claims=claims,
    # A baseline: no user who asks what to do is sent here.
    ladder=lambda dims: (),
    paper=Paper(
        "The Power of Scale for Parameter-Efficient Prompt Tuning", "Lester, Al-Rfou and Constant", 2021, "2104.08691"
    ),
    peft_type="PROMPT_TUNING",
    unmerged="no weight of the base holds virtual tokens",
)
