"""What methods claim about models that have learnt something, on one that has."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from hayless.core.registry import configure
from hayless.methods.common.targets import matching
from hayless.methods.common.weights import plain_ledger, weights_of
from hayless.model.transform import apply
from tests import asset


@cache
def untouched() -> float:
    return asset.bits_per_byte(asset.model())


def changed(method: str, **options: object) -> float:
    """Bits per byte that a change costs."""
    model = asset.model()
    apply(model, [configure(method, **options)])
    return asset.bits_per_byte(model) - untouched()


def test_it_has_learnt_more_than_how_often_tokens_occur() -> None:
    counts = torch.zeros(asset.model().config.vocab_size, dtype=torch.float64)
    for document in asset.text():
        counts += torch.bincount(document.tokens, minlength=len(counts))
    probabilities = counts / counts.sum()
    # The best that any unigram could do: the text's own frequencies.
    nats = -sum(float(probabilities[document.tokens].log().sum()) for document in asset.text())
    unigram = nats / math.log(2) / sum(document.bytes for document in asset.text())
    assert untouched() < 0.8 * unigram


def test_it_minds_the_order_of_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = [
        replace(document, tokens=document.tokens[torch.randperm(len(document.tokens), generator=generator)])
        for document in asset.text()
    ]
    assert asset.bits_per_byte(asset.model(), mixed) > 2 * untouched()


def test_fewer_bits_cost_more() -> None:
    costs = {bits: changed("kmeans", bits=bits) for bits in (8, 4, 3, 2)}
    assert abs(costs[8]) < 0.005 < costs[4] < costs[3] < costs[2], costs
    assert costs[4] < 0.1, costs
    grouped = changed("kmeans", bits=3, group_size=8)
    assert grouped < costs[3], "more codebooks, less error"


def test_small_weights_are_the_ones_to_drop() -> None:
    """Han et al. (2015): magnitude against chance, at the same sparsity."""
    by_size = changed("magnitude", sparsity=0.3)
    model = asset.model()
    generator = torch.Generator().manual_seed(0)
    for weight in weights_of(model, matching(plain_ledger(model), ("blocks",), "magnitude")):
        kept = torch.rand(weight.parameter.shape, generator=generator) >= 0.3
        weight.parameter.data.mul_(kept)
    by_chance = asset.bits_per_byte(model) - untouched()
    assert 0 < 5 * by_size < by_chance
    assert by_size < changed("magnitude", sparsity=0.5) < changed("magnitude", sparsity=0.7)


def test_bfloat16_costs_next_to_nothing() -> None:
    assert asset.bits_per_byte(asset.model("bfloat16")) == pytest.approx(untouched(), abs=0.01)
