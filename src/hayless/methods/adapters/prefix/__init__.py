"""Prefix tuning: every block attends to trained keys and values before the text."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part
from hayless.methods.adapters.prefix.config import PrefixConfig, predict
from hayless.methods.common.virtual_rows import claims

METHOD = Method(
    name="prefix",
    part=Part.TRANSFORM,
    summary="Train keys and values before every text, in each block; the base is frozen",
    config=PrefixConfig,
    implementation="hayless.methods.adapters.prefix.transform:Prefix",
    predict=predict,
    claims=claims,
    # A baseline: no user who asks what to do is sent here.
    ladder=lambda dims: (),
    paper=Paper("Prefix-Tuning: Optimizing Continuous Prompts for Generation", "Li and Liang", 2021, "2101.00190"),
    peft_type="PREFIX_TUNING",
    unmerged="no weight of the base holds virtual tokens",
)
