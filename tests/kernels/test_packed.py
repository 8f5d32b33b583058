"""Products with packed weights equal those with the weights that they mean; in the interpreter, on a GPU also in bf16.

What is expected is computed in float32 from the same x and weights, so every kernel is held to arithmetic of x's dtype.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.core.errors import NotSupported, RequestError
from hayless.kernels.packed import formats
from hayless.kernels.packed.dequantize import dequantize
from hayless.kernels.packed.gemm import BF16_NIBBLES, FP16_NIBBLES, gemm
from hayless.kernels.packed.gemv import gemv
from hayless.kernels.packed.linear import kernel_for, linear
from hayless.kernels.packed.tiles import MatrixTiles, VectorTiles
from tests.kernels.packed_weights import (
    DEVICE,
    DTYPES,
    assert_near,
    forms,
    integers,
    palette,
    poisoned,
    random,
    table,
)

FORMS = range(len(forms()))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_one_token(form, dtype):
    weight = forms()[form]
    rows, width = weight.shape
    x, bias = random(1, width, dtype=dtype), random(rows, dtype=dtype)
    for tiles in (None, VectorTiles(4, 16, 1, 2)):
        for added in (None, bias):
            found = gemv(x, weight, added, poisoned(1, rows, dtype=dtype), tiles=tiles)
            expected = formats.linear_reference(x.float(), weight, None if added is None else added.float())
            assert_near(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_several_tokens(form, dtype):
    weight = forms()[form]
    rows, width = weight.shape
    bias = random(rows, dtype=dtype)
    for tokens, tiles in ((2, None), (17, MatrixTiles(16, 16, 4, 3)), (3, MatrixTiles(32, 32, 4, 1))):
        x = random(tokens, width, dtype=dtype)
        found = gemm(x, weight, bias, poisoned(tokens, rows, dtype=dtype), tiles=tiles)
        assert_near(found, formats.linear_reference(x.float(), weight, bias.float()))
        again = gemm(x, weight, bias, poisoned(tokens, rows, dtype=dtype), tiles=tiles)
        assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize(dtype):
    others = [palette(7, 13, 3, 2), palette(5, 9, 7, 5), palette(4, 11, 6, 3), integers(4, 12, 4, 4, zero=True)]
    for weight in [*forms(), *others]:
        found = dequantize(weight, dtype, out=poisoned(*weight.shape, dtype=dtype))
        expected = formats.dequantize_reference(weight, dtype)
        # Multiplications and additions may be fused on a GPU.
        close = {"rtol": 2**-7 if dtype is torch.bfloat16 else 1e-3, "atol": 1e-5}
        if DEVICE.type == "cuda" and isinstance(weight, formats.Table) and weight.nested:
            torch.testing.assert_close(found, expected, **close)
        else:
            assert torch.equal(found, expected)


def test_what_forms_mean():
    published = formats.Integers(torch.tensor([[0b10_11_00_01]], dtype=torch.uint8), torch.ones(1, 1), 2, None, True)
    assert formats.dequantize_reference(published, torch.float32).tolist() == [[1, 0, -1, -2]]
    zero = torch.tensor([[3]], dtype=torch.uint8)
    asymmetric = formats.Integers(torch.tensor([[0xF0]], dtype=torch.uint8), torch.full((1, 1), 0.5), 4, zero)
    assert formats.dequantize_reference(asymmetric, torch.float32).tolist() == [[-1.5, 6]]
    codes = torch.tensor([0x12] + [0] * 15, dtype=torch.uint8)
    first_high = formats.Table(codes, torch.full((1,), 2.0), torch.arange(16.0), (1, 32), 32)
    assert formats.dequantize_reference(first_high, torch.float32)[0, :3].tolist() == [2, 4, 0]
    stream = formats.Palette(
        torch.tensor([0b10_001_111, 0b0], dtype=torch.uint8), torch.arange(8.0)[None], (1, 3), 3, 1
    )
    assert formats.dequantize_reference(stream, torch.float32).tolist() == [[7, 1, 2]]


def _ptx(text: str, registers: dict[str, int]) -> dict[str, int]:
    """Registers after the instructions that packed products use of PTX, as its manual describes them."""
    floats = {"f16": torch.float16, "bf16": torch.bfloat16}

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    def halves(name: str, kind: str) -> torch.Tensor:
        number = value(name)
        pair = torch.tensor([number & 0xFFFF, number >> 16], dtype=torch.int32).to(torch.uint16)
        return pair.view(floats[kind]).float()

    for line in text.replace("{", "").replace("}", "").split(";"):
        operation, _, rest = line.strip().partition(" ")
        if not operation or operation.startswith(".reg"):
            continue
        to, *names = [name.strip() for name in rest.split(",")]
        if operation == "mov.b32":
            found = value(names[0])
        elif operation == "shr.b32":
            found = value(names[0]) >> value(names[1])
        elif operation == "prmt.b32":
            both = value(names[0]) | value(names[1]) << 32
            found = sum((both >> 8 * (value(names[2]) >> 4 * i & 7) & 255) << 8 * i for i in range(4))
        elif operation == "lop3.b32":
            assert names[3] == "0xEA", "(a & b) | c"
            found = value(names[0]) & value(names[1]) | value(names[2])
        else:
            name, _, kind = operation.partition(".rn.")
            a, b, *c = [halves(one, kind.removesuffix("x2")) for one in names]
            result = {"fma": lambda: a * b + c[0], "sub": lambda: a - b}[name]()  # noqa: B023
            low, high = result.to(floats[kind.removesuffix("x2")]).view(torch.uint16).tolist()
            found = low | high << 16
        registers[to] = found
    return registers


@pytest.mark.parametrize(("text", "dtype"), [(BF16_NIBBLES, torch.bfloat16), (FP16_NIBBLES, torch.float16)])
def test_the_assembly_of_nibbles(text, dtype):
    for words in ((0x76543210, 0xFEDCBA98), (0x0F1E2D3C, 0x89ABCDEF)):
        registers = _ptx(text.value, {"$8": words[0], "$9": words[1]})
        for place in range(8):
            pair = torch.tensor([registers[f"${place}"] & 0xFFFF, registers[f"${place}"] >> 16], dtype=torch.int32)
            expected = [(word >> 4 * place & 15) - 8 for word in words]
            assert pair.to(torch.uint16).view(dtype).tolist() == expected


def test_linear_takes_any_shape_and_kernel():
    weight = integers(24, 64, 4, 2)
    x, bias = random(2, 3, 64, dtype=torch.float32), random(24, dtype=torch.float32)
    expected = formats.linear_reference(x, weight, bias)
    for kernel in (None, "reference", "gemm", "dequantize"):
        out = poisoned(2, 3, 24, dtype=torch.float32)
        assert linear(x, weight, bias, out=out, kernel=kernel) is out
        assert_near(out, expected)
        assert_near(linear(x, weight, kernel=kernel), formats.linear_reference(x, weight))
    strided = random(64, 3, dtype=torch.float32).T
    assert_near(linear(strided, weight, kernel="gemm"), formats.linear_reference(strided, weight))
    assert linear(x[:0], weight).shape == (0, 3, 24)
    if DEVICE.type == "cpu":
        assert kernel_for(x, weight) == "reference"


def test_what_cannot_be():
    weight = integers(24, 64, 4, 2)
    x = random(2, 64, dtype=torch.float32)
    with pytest.raises(RequestError, match="x = "):
        linear(x[:, :60], weight)
    with pytest.raises(RequestError, match="bias"):
        linear(x, weight, torch.zeros(23, device=DEVICE))
    with pytest.raises(RequestError, match="out"):
        linear(x, weight, out=poisoned(2, 23, dtype=torch.float32))
    with pytest.raises(NotSupported, match="no gradients"):
        linear(x.clone().requires_grad_(), weight)
    with pytest.raises(NotSupported, match="one token"):
        linear(x, weight, kernel="gemv")
    with pytest.raises(NotSupported, match="groups of 3"):
        linear(random(2, 12, dtype=torch.float32), integers(4, 12, 4, 4), kernel="gemm")
    with pytest.raises(NotSupported, match="3 bits"):
        linear(random(1, 8, dtype=torch.float32), palette(4, 8, 3, 4), kernel="gemv")
    with pytest.raises(NotSupported, match=r"not torch\.float32|NVIDIA"):
        linear(x, weight, kernel="tensor_cores")
    for wrong, match in (
        (lambda: formats.Integers(weight.codes, weight.scale, 3), "bits = 3"),
        (lambda: formats.Integers(weight.codes, weight.scale[:, :0], 4), "scale"),
        (lambda: formats.Integers(weight.codes.T, weight.scale, 4), "scale|codes"),
        (lambda: formats.Table(weight.codes, weight.scale, torch.ones(16), (24, 64), 48), "block_size = 48"),
        (lambda: replace(table(24, 64, 64, nested=True), nested=None), "absmax"),
        (lambda: replace(palette(9, 40, 4, 4), group_size=2), "codebook"),
    ):
        with pytest.raises(RequestError, match=match):
            wrong()
