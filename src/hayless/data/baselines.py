"""The unigram baseline: what a model reaches that knows how often each token occurs, and nothing else.

p(token) = (count + 1) / (tokens + entries), from the learnt tokens of the training store (add-one smoothing: Laplace).
A trained model that is not clearly below this has learnt nothing about the order of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hayless.core.errors import RequestError
from hayless.data.store import StoredDocument, TokenStore


@dataclass(frozen=True, slots=True)
class UnigramLoss:
    """Nats a token and bits a byte over `tokens` predicted tokens that stand for `bytes` bytes."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Unigram:
    """Log-probabilities (v,) of all tokens, in nats."""

    log_probabilities: NDArray[np.float64]

    @classmethod
    def fit(cls, store: TokenStore) -> Unigram:
        """Count the learnt tokens of a store."""
        counts = np.zeros(store.vocab_size, dtype=np.int64)
        for index in range(len(store)):
            document = store[index]
            counts += np.bincount(document.tokens[document.trained], minlength=store.vocab_size)
        return cls(np.log(counts + 1.0) - math.log(counts.sum() + store.vocab_size))

    def loss(self, documents: Iterable[StoredDocument]) -> UnigramLoss:
        """The loss on the learnt tokens of documents, counted as `hayless.measure.quality` counts them."""
        nats, tokens, size = [], 0, 0
        for document in documents:
            learnt = document.tokens[document.trained]
            nats.append(-float(self.log_probabilities[learnt].sum()))
            tokens += len(learnt)
            size += document.bytes
        if not tokens or not size:
            raise RequestError("There is no token to predict.", hint="Give held-out documents that are not empty.")
        total = math.fsum(nats)
        return UnigramLoss(total / tokens, total / math.log(2) / size, tokens, size)
