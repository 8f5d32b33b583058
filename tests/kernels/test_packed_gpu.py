"""What only a GPU can run of packed products: tensor cores in CUDA C++, inline PTX, captured graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.linear import Norm
from hayless.kernels.packed import formats
from hayless.kernels.packed.gemm import gemm
from hayless.kernels.packed.linear import kernel_for, linear
from hayless.kernels.packed.streamed import stream
from hayless.kernels.packed.streamed import unsupported as unsupported_by_stream
from hayless.kernels.packed.tensor_cores import fits, in_one_launch, multiply, multiply_each, unsupported
from hayless.kernels.packed.tiles import CORE_CANDIDATES, ROW_CANDIDATES, STREAM_CANDIDATES, CoreTiles, StreamTiles
from tests.kernels.packed_weights import assert_near, integers, palette, poisoned, random, table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NARROW = [torch.bfloat16, torch.float16]


def _forms(dtype: torch.dtype) -> list[formats.Integers | formats.Table]:
    return [
        integers(70, 256, 4, 2, dtype=dtype),
        integers(33, 288, 4, 1),
        integers(48, 192, 4, 3, zero=True, dtype=dtype),
        integers(21, 352, 4, 11, zero=True, twos_complement=True, dtype=dtype),
        integers(4096, 4096, 4, 32, twos_complement=True, dtype=dtype),
        integers(33, 192, 8, 1),
        integers(40, 320, 8, 5, zero=True, twos_complement=True, dtype=dtype),
        integers(40, 512, 2, 4, twos_complement=True, dtype=dtype),
        integers(4096, 11008, 8, 1),
        table(33, 320, 64),
        table(18, 416, 32, nested=True),
        table(17, 512, 128),
        table(4096, 4096, 64, nested=True),
    ]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tokens", [1, 3, 16, 64])
def test_tensor_cores(tokens, dtype):
    for weight in _forms(dtype):
        rows, width = weight.shape
        x, bias = random(tokens, width, dtype=dtype), random(rows, dtype=dtype)
        assert unsupported(x, weight) == "" and kernel_for(x, weight) == "tensor_cores"
        for tiles in (None, CoreTiles(1, 4, 2, 3)) if tokens == 16 else (None,):
            found = multiply(x, weight, bias, poisoned(tokens, rows, dtype=dtype), tiles=tiles)
            assert_near(found, formats.linear_reference(x.float(), weight, bias.float()))


@pytest.mark.parametrize("tokens", [1, 5])
def test_several_in_one_launch(tokens):
    rows, width = (96, 40, 64), 512
    makers = [
        lambda n: integers(n, width, 4, 8, dtype=torch.bfloat16),
        lambda n: integers(n, width, 4, 8, zero=True, dtype=torch.bfloat16),
        lambda n: integers(n, width, 8, 1),
        lambda n: table(n, width, 64, nested=True),
    ]
    x = random(tokens, width, dtype=torch.bfloat16)
    for make in makers:
        weights, out = [make(n) for n in rows], poisoned(tokens, sum(rows), dtype=torch.bfloat16)
        weights = [replace(one, table=weights[0].table) if isinstance(one, formats.Table) else one for one in weights]
        biases = [random(n, dtype=torch.bfloat16) for n in rows]
        products = [formats.Product(*one) for one in zip(weights, biases, out.split(rows, 1), strict=True)]
        assert in_one_launch(x, weights)
        multiply_each(x, products)
        for weight, bias, found in zip(weights, biases, out.split(rows, 1), strict=True):
            alone = multiply(x, weight, bias, poisoned(tokens, weight.shape[0], dtype=torch.bfloat16))
            assert_near(alone, formats.linear_reference(x.float(), weight, bias.float()))
            assert_near(found, formats.linear_reference(x.float(), weight, bias.float()))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("width", [512, 4096])
def test_normalized_and_gated(tokens, width):
    makers = [
        lambda: integers(1100, width, 4, width // 64, dtype=torch.bfloat16),
        lambda: replace(integers(1100, width, 8, 1), divisor=127),
        lambda: table(1100, width, 64, nested=True),
    ]
    x, gain = random(tokens, width, dtype=torch.bfloat16), random(width, dtype=torch.bfloat16)
    y = torch.nn.functional.rms_norm(x.float(), (width,), gain.float(), 1e-3)
    for make in makers:
        gate, up, out = make(), make(), poisoned(tokens, 1100, dtype=torch.bfloat16)
        if isinstance(up, formats.Table):
            up = replace(up, table=gate.table)
        products = [formats.Product(gate, None, out), formats.Product(up, None, out)]
        assert in_one_launch(x, [gate, up], normed=True)
        multiply_each(x, products, norm=Norm(gain, 1e-3), gated=True)
        first, second = (formats.linear_reference(y, weight) for weight in (gate, up))
        wanted = torch.nn.functional.silu(first) * second
        torch.testing.assert_close(out.float(), wanted, rtol=2**-4, atol=2**-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("tiles", CORE_CANDIDATES[::3], ids=str)
def test_candidates(tiles):
    forms = [integers(150, 640, 4, 5, dtype=torch.bfloat16), integers(150, 640, 8, 1), table(150, 640, 64)]
    weight = forms[CORE_CANDIDATES.index(tiles) // 3 % 3]  # each is compiled for a while
    x = random(16, 640, dtype=torch.bfloat16)
    if not fits(x, weight, tiles):
        x = x[:3]
    found = multiply(x, weight, None, poisoned(len(x), 150, dtype=torch.bfloat16), tiles=tiles)
    assert_near(found, formats.linear_reference(x.float(), weight))


@pytest.mark.parametrize("tiles", STREAM_CANDIDATES + ROW_CANDIDATES, ids=str)
def test_streamed_candidates(tiles):
    candidates, tokens = (STREAM_CANDIDATES, 1) if isinstance(tiles, StreamTiles) else (ROW_CANDIDATES, 11)
    x, makers = random(tokens, 1024, dtype=torch.bfloat16), [(4, 16), (8, 1)]
    weights = [integers(300, 1024, *one, dtype=torch.bfloat16) for one in makers] + [table(300, 1024, 64)]
    weight = weights[candidates.index(tiles) % 3]  # each is compiled for a while
    assert unsupported_by_stream(x, weight) == ""
    out = poisoned(tokens, 300, dtype=torch.bfloat16)
    stream(x, [formats.Product(weight, None, out)], tiles=tiles)
    assert_near(out, formats.linear_reference(x.float(), weight))


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("form", ["int4", "int8", "nf4"])
def test_products_overlap_in_a_graph(form, tokens):
    """Each multiplies what the one before has made, and begins while that still runs."""
    make = {
        "int4": lambda: integers(2048, 2048, 4, 32, dtype=torch.bfloat16),
        "int8": lambda: replace(integers(2048, 2048, 8, 1, twos_complement=True), divisor=127),
        "nf4": lambda: table(2048, 2048, 64, nested=True),
    }[form]
    weights = [make() for _ in range(12)]
    assert unsupported_by_stream(torch.empty(tokens, 2048, dtype=torch.bfloat16, device="cuda"), weights[0]) == ""
    start = random(tokens, 2048, dtype=torch.bfloat16)
    states = [torch.empty_like(start) for _ in range(13)]

    def run(overlap: bool) -> None:
        states[0].copy_(start)
        for weight, x, out in zip(weights, states, states[1:], strict=False):
            multiply_each(x, [formats.Product(weight, None, out)], norm=Norm(gain, 1e-5), overlap=overlap)

    gain = random(2048, dtype=torch.bfloat16)
    run(False)
    wanted = states[-1].clone()
    run(True)
    assert torch.equal(states[-1], wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(True)
    for _ in range(20):
        for state in states:
            state.fill_(torch.nan)
        graph.replay()
        assert torch.equal(states[-1], wanted)


@pytest.mark.parametrize("dtype", NARROW)
def test_inline_ptx_of_nibbles(dtype):
    for weight in (integers(96, 512, 4, 4, dtype=dtype), integers(96, 512, 4, 4, zero=True, twos_complement=True)):
        x = random(16, 512, dtype=dtype)
        found = gemm(x, weight, None, poisoned(16, 96, dtype=dtype))
        assert_near(found, formats.linear_reference(x.float(), weight))


def test_captured():
    for weight in (integers(256, 512, 4, 4), integers(256, 512, 8, 1), table(256, 512, 64), palette(256, 512, 3, 64)):
        for tokens in (1, 16, 100):
            x = random(tokens, 512, dtype=torch.bfloat16)
            expected = linear(x, weight)
            out = poisoned(tokens, 256, dtype=torch.bfloat16)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                linear(x, weight, out=out)
            out.fill_(torch.nan)
            graph.replay()
            assert torch.equal(out, expected)
            x.neg_()
            graph.replay()
            assert torch.equal(out, -expected)
