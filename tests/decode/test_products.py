"""A few rows on one CPU thread are multiplied in a way of their own; the reference is F.linear."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hayless.decode.products import Linear
from hayless.decode.sampling import likeliest


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 9])
@pytest.mark.parametrize(
    ("out", "wide"),
    [(700, 301), (128, 1024), (1024, 192), (1025, 192), (16, 24)],
    ids=["odd", "just large", "narrow", "narrow, odd", "small"],
)
def test_products_are_those_of_pytorch(rows, out, wide, biased):
    generator = torch.Generator().manual_seed(rows)
    weight, x, before = (torch.randn(*shape, generator=generator) for shape in ((out, wide), (rows, wide), (rows, out)))
    bias = torch.randn(out, generator=generator) if biased else None
    product, expected = Linear(weight, bias), F.linear(x, weight, bias)
    into, onto = torch.full((rows, 2 * out), torch.nan)[:, ::2], before.clone()
    product.into(into, x)
    product.onto(onto, x)
    for found, right in ((product(x), expected), (into, expected), (onto, before + expected)):
        torch.testing.assert_close(found, right, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(product(x[:, None]), expected[:, None], atol=1e-3, rtol=1e-5)


def test_weights_are_read_where_they_are_now():
    weight, x = torch.randn(512, 256), torch.randn(1, 256)
    product = Linear(weight, None)
    weight.mul_(2)
    torch.testing.assert_close(product(x), F.linear(x, weight), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_go_through_pytorch(dtype):
    weight, x = torch.randn(512, 256).to(dtype), torch.randn(1, 256).to(dtype)
    assert torch.equal(Linear(weight, None)(x), F.linear(x, weight))


def test_the_likeliest_is_the_first_of_equals():
    logits_bv = torch.tensor([[0.0, 3.0, 3.0], [5.0, 5.0, 1.0]])
    assert likeliest(logits_bv).tolist() == [1, 0] and likeliest(logits_bv[None])[0].tolist() == [1, 0]
