"""Rows of running text: documents in a seeded order, end to end, cut into rows of one length."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hayless.core.errors import RequestError
from hayless.data.order import shuffled
from hayless.data.store import TokenStore


def running_text(store: TokenStore, *, tokens: int, length: int, seed: int) -> Tensor:
    """The first `tokens` tokens of a store's documents in the order that `seed` gives, (rows, length); what is beyond
    the last whole row is left out. RequestError where the store has fewer tokens."""
    held = len(store.tokens)
    if held < tokens or tokens < length:
        raise RequestError(
            f"Text of {tokens:,} tokens in rows of {length:,} is asked for, and the documents have {held:,} tokens.",
            hint="Ask for fewer tokens (calibration.tokens), but no less than a row (calibration.sequence_length).",
        )
    parts, found = [], 0
    for place in range(len(store)):
        index = shuffled(place, len(store), seed)
        part = store.tokens[int(store.offsets[index]) : int(store.offsets[index + 1])]
        parts.append(np.asarray(part, dtype=np.int64))
        found += len(part)
        if found >= tokens:
            break
    rows = tokens // length
    return torch.from_numpy(np.concatenate(parts)[: rows * length]).view(rows, length)
