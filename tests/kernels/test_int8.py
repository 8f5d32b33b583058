"""The kernels of LLM.int8() equal plain PyTorch: codes and lists to the bit, products to their rounding.

In Triton's interpreter on a CPU, on a GPU also in bf16. What they must write is NaN or nonsense first.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.int8 import few, plain, product, rows
from hayless.kernels.int8.backend import product_for
from hayless.kernels.int8.capacity import FEW, capacity_of
from hayless.kernels.int8.tiles import Tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
CASES = [
    (1, 1, 1, 0),
    (1, 33, 17, 2),
    (5, 64, 40, 3),
    (16, 100, 33, 100),
    (17, 64, 7, 0),
    (37, 100, 70, 40),
]
"""Tokens, width, rows of W, outlying columns: with few tokens, with many, and with more columns than have room."""

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def _input(tokens: int, width: int, outliers: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(tokens, width).clamp(-5.5, 5.5)
    for column in torch.randperm(width)[:outliers].tolist():
        x[column % tokens, column] = -7.0 - column / width
    return x.to(DEVICE, dtype)


def _weights(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randint(-127, 128, (count, width), dtype=torch.int8)
    return weight.to(DEVICE), (torch.rand(count) + 0.5).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "count", "outliers"), CASES)
def test_rows_are_quantized_and_outliers_listed(dtype, tokens, width, count, outliers):
    x = _input(tokens, width, outliers, dtype)
    capacity = capacity_of(tokens, width)
    found = rows.quantize(x, 6.0, capacity=capacity)
    codes, scale, index = plain.quantize(x, 6.0)
    assert len(index) == outliers == int(found.count)
    assert torch.equal(found.codes, codes) and torch.equal(found.scale, scale)
    assert torch.equal(found.index[:outliers].long(), index)
    # A column that has room is there; up to the end of its piece of 32 there are zeros behind it.
    near, end = min(outliers, capacity), min(capacity, -(-outliers // 32) * 32)
    assert torch.equal(found.kept[:, :near], x[:, index[:near]]) and not found.kept[:, near:end].any()
    weight, _ = _weights(count, width)
    assert torch.equal(rows.picked(weight, found)[:, :near], weight[:, index[:near]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "count", "outliers"), CASES)
def test_product(dtype, tokens, width, count, outliers):
    x, (weight, scale) = _input(tokens, width, outliers, dtype), _weights(count, width)
    bias = torch.randn(count).to(DEVICE, dtype) if count % 2 else None
    expected = plain.product(x, weight, scale, bias, 6.0).float()
    small = Tiles(32, 16, 32, 1, 2, group=2)
    for tiles in (None, small, Tiles(64, 32, 64, 4, 3, tma=True)):
        found = product.product(x, weight, scale, bias, 6.0, tiles=tiles)
        assert found.dtype is dtype
        torch.testing.assert_close(
            found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * float(expected.abs().max())
        )


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("tokens", [3, 40])
def test_numbers_that_are_none_stay_none_whatever_the_threshold(tokens):
    x, (weight, scale) = _input(tokens, 40, 0, torch.float32), _weights(9, 40)
    x[1, 3], x[2, 7] = torch.nan, torch.inf
    for threshold in (6.0, 0.0):
        found = product.product(x, weight, scale, None, threshold)
        others = torch.arange(tokens) > 2
        assert not found[1:3].isfinite().any() and found[others].isfinite().all() and found[0].isfinite().all()


def test_tokens_of_zeros_and_ties_are_rounded_as_pytorch_does():
    x = torch.zeros(2, 260, device=DEVICE)
    x[1, :255] = torch.arange(-127, 128, device=DEVICE) / 2
    for capacity, copies in ((0, 1), (32, 20)):
        found = rows.quantize(x.repeat(copies, 1), 0.0, capacity=capacity)
        codes, _, _ = plain.quantize(x, 0.0)
        assert torch.equal(found.codes[:2], codes) and not found.codes[0].any() and not int(found.count)
    many, few = x.repeat(10, 1), _weights(5, 260)
    expected = plain.product(many, *few, None, 0.0)
    torch.testing.assert_close(product.product(many, *few, None, 0.0), expected, rtol=2e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("tokens", "width", "expected"), [(FEW, 4096, 0), (17, 4096, 256), (4096, 100, 32), (99, 513, 64)]
)
def test_room_for_outliers(tokens, width, expected):
    assert capacity_of(tokens, width) == expected


def test_without_a_gpu_it_is_plain_pytorch():
    assert product_for(torch.zeros(2, 4), *_weights(3, 4), 6.0) is plain.product


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [1, 16, 64, 300])
def test_at_real_sizes_it_is_captured_and_equal(tokens):
    x, (weight, scale) = _input(tokens, 4096, 41, torch.bfloat16), _weights(4096, 4096)
    assert product_for(x, weight, scale, 0.0) is product.product
    assert product_for(x, weight, scale, 6.0) is (few.product if tokens <= FEW else product.product)
    product.product(x, weight, scale, None, 6.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = product.product(x, weight, scale, None, 6.0)
    # Other outliers, and another number of them, in the same graph.
    x[:, 7], x[:, 100:103] = 9.0, -8.0
    expected = plain.product(x, weight, scale, None, 6.0).float()
    graph.replay()
    torch.testing.assert_close(found.float(), expected, rtol=1.6e-2, atol=1.6e-2 * float(expected.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width", "count"), [(1, 4096, 4096), (3, 512, 100), (16, 1024, 33)])
def test_few_tokens_are_multiplied_in_16_bits(tokens, width, count, dtype):
    x, (weight, scale) = _input(tokens, width, 5, dtype), _weights(count, width)
    bias = torch.randn(count, device=DEVICE)
    found = product_for(x, weight, scale, 6.0)(x, weight, scale, bias, 6.0)
    expected = x.float() @ (weight.float() * scale[:, None] / 127).T + bias
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), expected, rtol=1.6e-2, atol=4e-3 * float(expected.abs().max()))
