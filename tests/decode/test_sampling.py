"""The filters equal transformers' warpers, and draws follow the distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hayless.decode.options import SamplingOptions
from hayless.decode.sampling import distribution, draw


def _warped(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """What transformers samples from, in the order of its own generate."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(options.temperature)])
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        warpers.append(MinPLogitsWarper(options.min_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits.float()).softmax(-1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.3, 0.7, 1.0, 1.3, 4.0]),
    st.sampled_from([0, 1, 3, 200]),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_distribution_equals_transformers_warpers(seed, temperature, top_k, top_p, min_p):
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = 3 * torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    expected = _warped(logits, options)
    found = distribution(logits, options)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_16_bit_logits_give_float32_probabilities():
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(1)).bfloat16()
    options = SamplingOptions(temperature=0.8, top_p=0.9)
    assert distribution(logits, options).dtype is torch.float32
    torch.testing.assert_close(distribution(logits, options), distribution(logits.float(), options))


def test_temperature_zero_is_the_first_of_the_likeliest():
    found = distribution(torch.tensor([[1.0, 5.0, 5.0]]), SamplingOptions(top_k=1, top_p=0.1))
    assert found.tolist() == [[0.0, 1.0, 0.0]]


def test_a_tiny_temperature_does_not_overflow():
    found = distribution(torch.tensor([[80.0, 90.0, -1e30]]), SamplingOptions(temperature=1e-30))
    assert found.tolist() == [[0.0, 1.0, 0.0]]


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    count = 20_000
    generator = torch.Generator().manual_seed(3)
    seen = torch.bincount(draw(probs.expand(count, -1), [generator] * count), minlength=7)
    assert seen[probs == 0].sum() == 0
    kept = probs > 0
    chi_square = ((seen - count * probs) ** 2 / (count * probs))[kept].sum()
    assert chi_square < 16.27  # 99.9% of chi-square with 3 degrees of freedom


def test_a_draw_depends_on_its_own_generator_only():
    probs = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    alone = [draw(probs[row : row + 1], [torch.Generator().manual_seed(row)]).item() for row in range(6)]
    together = draw(probs, [torch.Generator().manual_seed(row) for row in range(6)])
    assert together.tolist() == alone


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (0.25, 2), (1 - 2**-53, 2)])
def test_the_ends_of_the_uniform_draw_nothing_impossible(monkeypatch, uniform, expected):
    monkeypatch.setattr(
        "hayless.decode.sampling.torch.rand", lambda *_, **__: torch.tensor([[uniform]], dtype=torch.float64)
    )
    probs = torch.tensor([[0.0, 0.25, 0.75, 0.0]])
    assert draw(probs, [torch.Generator()]).item() == expected


def test_top_p_keeps_no_more_than_it_needs():
    options = SamplingOptions(temperature=1.0, top_p=0.5)
    logits = torch.zeros(1, 2)
    assert torch.equal(distribution(logits, options), _warped(logits, options))
    assert (distribution(logits, options) > 0).sum() == 1


@pytest.mark.parametrize("certain", [0, 4, 9])
def test_a_certain_token_is_always_drawn(certain):
    probs = torch.zeros(1000, 10)
    probs[:, certain] = 1e-30
    assert set(draw(probs, [torch.Generator().manual_seed(0)] * 1000).tolist()) == {certain}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": 2},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"max_tokens": 0},
        {"unknown": 1},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        SamplingOptions(**wrong)
