"""What a user can set about prompt tuning, and what it makes of a ledger. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.methods.common.virtual_rows import add_rows, table_row


class PromptConfig(MethodConfig):
    """Trained embeddings of virtual tokens go through the model before the text; all else is frozen."""

    method: Literal["prompt"] = "prompt"
    tokens: int = Field(20, ge=1, description="How many virtual tokens stand before a text.")
    text: str | None = Field(
        None,
        min_length=1,
        description="They start as this text's embeddings, repeated or cut to their number; as those of tokens drawn"
        " from the vocabulary if not given.",
    )


def predict(ledger: Ledger, config: PromptConfig) -> Ledger:
    """The ledger after `prompt`: a table of embeddings, which alone is trained."""
    width = ledger.dims.embedding_width
    return add_rows(ledger, config.method, (table_row(config.method, config.tokens, width, width),))
