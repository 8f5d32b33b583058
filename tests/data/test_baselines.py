"""The unigram baseline against counting by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hayless.core.errors import RequestError
from hayless.data.baselines import Unigram
from tests.data import made
from tests.data.test_store import EXAMPLES


@pytest.mark.parametrize("kind", ["lm", "sft"])
def test_by_hand(tmp_path, kind):
    path = made.texts(tmp_path, [40] * 10) if kind == "lm" else made.write_lines(tmp_path / "a.jsonl", EXAMPLES)
    prepared = made.prepared(tmp_path, path, kind=kind, heldout=0.3)
    counts = Counter()
    for index in range(len(prepared.train)):
        document = prepared.train[index]
        counts.update(document.tokens[document.trained].tolist())
    entries = prepared.train.vocab_size
    nats = tokens = size = 0
    for index in range(len(prepared.heldout)):
        document = prepared.heldout[index]
        for token in document.tokens[document.trained].tolist():
            nats -= math.log((counts[token] + 1) / (counts.total() + entries))
            tokens += 1
        size += document.bytes
    model = Unigram.fit(prepared.train)
    assert np.exp(model.log_probabilities).sum() == pytest.approx(1)
    found = model.loss(prepared.heldout.sample(10**6, longest=10**6))
    assert (found.tokens, found.bytes) == (tokens, size)
    assert found.nats_per_token == pytest.approx(nats / tokens)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size)


def test_nothing_to_predict(tmp_path):
    model = Unigram.fit(made.prepared(tmp_path, made.texts(tmp_path, [40] * 10)).train)
    with pytest.raises(RequestError, match="no token"):
        model.loss([])
