"""What a user can set about speculative sampling. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hayless.core.method import MethodConfig

LOOKUP, SELF = "lookup", "self"
"""Drafts that need no second model."""

MOST_TOKENS = 16
MOST, FIRST = 8, 3
"""Tokens drafted a pass where `tokens` is auto: at most, and in the first measurement."""
_COUNTS = {str(count) for count in range(1, MOST_TOKENS + 1)}


def _tokens(value: Any) -> Any:
    if value == "auto" or str(value) in _COUNTS:
        return value if value == "auto" else int(value)
    raise ValueError(f"{value!r} is not possible; allowed: a whole number from 1 to {MOST_TOKENS}, or auto")


DraftTokens = Annotated[int | Literal["auto"], BeforeValidator(_tokens)]


class SpeculativeConfig(MethodConfig):
    """Something cheap drafts tokens, and one pass of the model keeps those that it would have made itself."""

    method: Literal["speculative"] = "speculative"
    draft: str = Field(
        LOOKUP,
        min_length=1,
        description="Who drafts: lookup (what followed the same words before), self (the model's own first layers), or"
        " a model: a folder (a packed one, too) or a hub id.",
    )
    tokens: DraftTokens = Field(
        "auto", description="Tokens drafted a pass, 1 to 16; auto takes what was measured to be fastest."
    )
    layers: int | None = Field(
        None, ge=1, description="Layers that the draft self goes through; a quarter of them, rounded up, if not given."
    )
    ngram: int = Field(3, ge=1, le=8, description="The draft lookup compares so many last tokens at most.")
    preflight: bool = Field(
        True,
        description="First measure, on the user's own prompts, what drafts cost and how many are accepted, and decode"
        " without them where that is faster.",
    )
