"""The CUDA C++ of packed products on a CPU (see `emulation`; on a GPU `test_packed_gpu.py`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.linear import Norm
from hayless.kernels.packed import formats, streamed, tensor_cores
from hayless.kernels.packed.tiles import CoreTiles
from tests.kernels.emulation import NEEDS, built
from tests.kernels.packed_weights import assert_near, integers, poisoned, table

pytestmark = NEEDS


class _Launch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "gain", "matrices")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("m", "width", "groups", "add", "blocks", "splits")),
    )


def _emulated(folder: Path, sources: Sequence[Path], defined: dict[str, int]) -> Callable[..., None]:
    """The kernel compiled for the CPU, to be launched like one of PyTorch's."""
    library = built(folder, sources, defined, "emulated_products.h")

    def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
        assert block == (32 * defined["WARPS"], 1, 1)
        x, gain, epsilon, matrices, *numbers = args
        library.run(ctypes.byref(_Launch(x, gain, ctypes.addressof(matrices), epsilon, *numbers, *grid[:2])))

    return kernel


@pytest.fixture
def emulated(tmp_path, monkeypatch):
    """Products by the kernel compiled for the CPU."""
    monkeypatch.setattr(tensor_cores, "unsupported", lambda x, weight: "")
    monkeypatch.setattr(streamed, "unsupported", lambda x, weight: "the other kernel is meant")
    monkeypatch.setattr(
        tensor_cores, "compiled", lambda sources, name, defined, device: _emulated(tmp_path, sources, defined)
    )
    monkeypatch.setattr(tensor_cores, "launch", lambda kernel, grid, block, args, shared: kernel(grid, block, args))
    # In Triton's interpreter bf16 is wrong.
    monkeypatch.setattr(tensor_cores, "add_splits", lambda parts, bias, out: out.copy_(parts.sum(0) + bias.float()))


@pytest.mark.parametrize(
    ("weight", "tokens", "tiles"),
    [
        (lambda: integers(37, 352, 4, 11, zero=True, twos_complement=True, dtype=torch.bfloat16), 9, (2, 4, 1, 1, 2)),
        (lambda: integers(21, 384, 4, 1), 1, (1, 4, 2, 2)),
        (lambda: integers(33, 80, 8, 5, zero=True, dtype=torch.bfloat16), 3, (1, 4, 2, 1)),
        (lambda: integers(17, 512, 2, 2, twos_complement=True), 2, (1, 4, 2, 1)),
        (lambda: replace(integers(18, 128, 8, 1, twos_complement=True), divisor=127), 2, (1, 4, 1, 1, 2)),
        (lambda: integers(20, 512, 4, 8, zero=True, dtype=torch.bfloat16), 5, (1, 4, 1, 1, 2, True)),
        (lambda: integers(20, 384, 4, 3, zero=True, dtype=torch.bfloat16), 3, (1, 4, 1, 1, 2, True)),
        (lambda: integers(17, 512, 2, 8, twos_complement=True, dtype=torch.bfloat16), 3, (1, 4, 2, 1, 1, True)),
        (lambda: table(18, 384, 32, nested=True), 3, (1, 4, 2, 2, 1, True)),
        (lambda: table(18, 320, 64), 1, (1, 4, 1, 1, 2, True)),
        (lambda: table(18, 256, 64), 1, (2, 4, 1, 1, 2, True)),
    ],
)
def test_tensor_cores(weight, tokens, tiles, emulated):
    torch.manual_seed(0)
    weight = weight()
    rows, width = weight.shape
    x, bias = torch.randn(tokens, width).bfloat16(), torch.randn(rows).bfloat16()
    out = poisoned(tokens, rows, dtype=torch.bfloat16)
    found = tensor_cores.multiply(x, weight, bias, out, tiles=CoreTiles(*tiles))
    expected = formats.linear_reference(x.float(), weight) + bias.float()
    before = torch.randn(tokens, rows).bfloat16()
    added = tensor_cores.multiply(x, weight, bias, before.clone(), tiles=CoreTiles(*tiles), add=True)
    torch.testing.assert_close(added.float(), before.float() + found.float(), rtol=2**-6, atol=2**-6)
    if isinstance(weight, formats.Integers):  # whole numbers are exact in bf16: only the result is rounded
        allowed = {"rtol": 2**-8, "atol": 1e-4 * float(expected.abs().max())}
        torch.testing.assert_close(found.float(), expected, **allowed)
    else:
        assert_near(found, expected)


def test_several_in_one_launch(emulated):
    torch.manual_seed(0)
    weights = [integers(rows, 256, 4, 4, dtype=torch.bfloat16) for rows in (37, 16, 20)]
    x, bias = torch.randn(3, 256).bfloat16(), torch.randn(16).bfloat16()
    out = poisoned(3, 80, dtype=torch.bfloat16)
    pieces = [out[:, :37], out[:, 37:53], out[:, 53:73]]
    products = [formats.Product(*one) for one in zip(weights, (None, bias, None), pieces, strict=True)]
    tensor_cores.multiply_each(x, products)
    for one in products:
        wanted = formats.linear_reference(x.float(), one.weight)
        wanted += 0 if one.bias is None else one.bias.float()
        torch.testing.assert_close(one.out.float(), wanted, rtol=2**-8, atol=1e-4 * float(wanted.abs().max()))
    assert out[:, 73:].isnan().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: integers(rows, 256, 4, 4, dtype=torch.bfloat16),
        lambda rows: replace(integers(rows, 256, 8, 1), divisor=127),
        lambda rows: table(rows, 256, 64, nested=True),
    ],
)
def test_normalized_and_gated(make, emulated):
    torch.manual_seed(0)
    gate, up = make(37), make(37)
    if isinstance(up, formats.Table):
        up = replace(up, table=gate.table)
    x, gain, bias = torch.randn(2, 256).bfloat16(), torch.rand(256).bfloat16(), torch.randn(37).bfloat16()
    out = poisoned(2, 37, dtype=torch.bfloat16)
    products = [formats.Product(gate, bias, out), formats.Product(up, None, out)]
    tensor_cores.multiply_each(x, products, norm=Norm(gain, 0.5), gated=True)
    y = x.float() * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 0.5) * gain.float()
    first, second = (formats.linear_reference(y, weight) for weight in (gate, up))
    wanted = torch.nn.functional.silu(first + bias.float()) * second
    torch.testing.assert_close(out.float(), wanted, rtol=2**-5, atol=2**-6 * float(wanted.abs().max()))
