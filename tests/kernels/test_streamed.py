"""The CUDA C++ of packed products of up to 16 tokens on a CPU (see `emulation`; on a GPU `test_packed_gpu.py`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.core.errors import NotSupported
from hayless.kernels.linear import Norm
from hayless.kernels.packed import formats, ring, streamed, streamed_rows
from hayless.kernels.packed.streamed import stream
from hayless.kernels.packed.tiles import STREAM_OF_SEVERAL, RowTiles, StreamTiles
from tests.kernels.emulation import NEEDS, built
from tests.kernels.packed_weights import assert_near, integers, poisoned, table

pytestmark = NEEDS
BF16 = torch.bfloat16


class _Launch(ctypes.Structure):
    """Of streamed.cu, streamed_few.cu and streamed_rows.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "gain", "matrices", "sums", "squares")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("tiles", "add", "tokens", "blocks")),
    )


class _Sums(ctypes.Structure):
    """Of streamed_sums.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("sums", "squares")),
        ("epsilon", ctypes.c_float),
        ("matrices", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("width", "tiles", "add", "tokens", "blocks")),
    )


def _emulated(folder: Path, sources: Sequence[Path], name: str, defined: dict[str, int]) -> Callable[..., None]:
    """The kernel compiled for the CPU, to be launched like one of PyTorch's."""
    library = built(folder, sources, defined, "emulated_sums.h" if name == "packed_sums" else "emulated_streamed.h")

    def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
        assert block == (32 * defined["WARPS"], 1, 1)
        if name == "packed_stream_rows":
            x, gain, matrices, tiles, tokens, sums, squares = args
            launched = _Launch(x, gain, ctypes.addressof(matrices), sums, squares, 0, tiles, 0, tokens, grid[0])
        elif name != "packed_sums":
            x, gain, epsilon, matrices, tiles, add, *tokens = args
            numbers = (tiles, add, *(tokens or [1]), grid[0])
            launched = _Launch(x, gain, ctypes.addressof(matrices), None, None, epsilon, *numbers)
        else:
            sums, squares, epsilon, width, matrices, *numbers = args
            launched = _Sums(sums, squares, epsilon, ctypes.addressof(matrices), width, *numbers, grid[0])
        library.run(ctypes.byref(launched))

    return kernel


@pytest.fixture(autouse=True)
def _on_a_cpu(tmp_path, monkeypatch, poisoned_memory):
    """Three processors, and products by the kernel compiled for the CPU."""
    monkeypatch.setattr(ring, "device", lambda x: (3, 200 * 1024))
    for module in (streamed, streamed_rows):
        monkeypatch.setattr(
            module, "compiled", lambda sources, name, defined, device: _emulated(tmp_path, sources, name, defined)
        )
        monkeypatch.setattr(
            module, "launch", lambda kernel, grid, block, args, shared=0, overlap=False: kernel(grid, block, args)
        )


@pytest.mark.parametrize(
    ("make", "tiles"),
    [
        (lambda: integers(70, 1280, 4, 20, dtype=BF16), StreamTiles(1, 8)),  # steps of two parts, four groups
        (lambda: integers(150, 640, 4, 10, dtype=BF16), StreamTiles(4, 4)),  # of one
        (lambda: integers(37, 768, 4, 2, dtype=BF16, twos_complement=True), StreamTiles(2, 4)),  # groups of three parts
        (lambda: integers(20, 512, 4, 4, dtype=BF16), StreamTiles(1, 8, 1)),  # a scale is half of what is copied
        (lambda: integers(20, 512, 4, 16), StreamTiles(2, 4)),  # four groups a part, in fp32
        (lambda: integers(33, 384, 4, 1, dtype=BF16), StreamTiles(1, 4)),
        (lambda: replace(integers(33, 384, 8, 1, twos_complement=True), divisor=127), StreamTiles(2, 4)),
        (lambda: integers(18, 512, 8, 8, dtype=BF16), StreamTiles(1, 4)),
        (lambda: table(37, 640, 64), StreamTiles(2, 4)),
        (lambda: table(37, 512, 64, nested=True), StreamTiles(1, 8)),
    ],
)
def test_a_product(make, tiles):
    weight = make()
    rows, width = weight.shape
    x, bias, before = torch.randn(1, width).bfloat16(), torch.randn(rows).bfloat16(), torch.randn(1, rows).bfloat16()
    x[0, 3], x[0, 130] = 1000, 1e-3
    out = before.clone()
    stream(x, [formats.Product(weight, bias, out)], add=True, tiles=tiles)
    wanted = formats.linear_reference(x.float(), weight, bias.float()) + before.float()
    if isinstance(weight, formats.Table):  # whose values are rounded to bf16
        assert_near(out, wanted)
    else:  # x of sixteen bits: only the result is rounded
        torch.testing.assert_close(out.float(), wanted, rtol=2**-8, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("tokens", [1, 5, 9])
def test_tiles_that_leave_no_room_are_refused(tokens, monkeypatch):
    monkeypatch.setattr(ring, "device", lambda x: (8, 100 * 1024))
    weight, out = integers(20, 512, 4, 8, dtype=BF16), poisoned(tokens, 20, dtype=BF16)
    x = torch.randn(tokens, 512).bfloat16()
    tiles = RowTiles(8, 16) if tokens > 8 else StreamTiles(4, 16, 2)
    with pytest.raises(NotSupported, match="no room in shared memory"):
        stream(x, [formats.Product(weight, None, out)], tiles=tiles)


@pytest.mark.parametrize(("value", "wanted"), [(torch.nan, torch.nan), (torch.inf, torch.nan), (0, 0), (1e-38, 0)])
def test_what_is_no_number_is_not_lost(value, wanted):
    weight = integers(20, 512, 4, 8, dtype=BF16)
    x, out = torch.full((1, 512), value).bfloat16(), poisoned(1, 20, dtype=BF16)
    x[0, 1:] = 0
    stream(x, [formats.Product(weight, None, out)], tiles=StreamTiles(1, 4))
    torch.testing.assert_close(out, torch.full_like(out, wanted), equal_nan=True)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 11])
@pytest.mark.parametrize(
    "make",
    [
        lambda rows: integers(rows, 512, 4, 8, dtype=BF16),
        lambda rows: replace(integers(rows, 512, 8, 1), divisor=127),
        lambda rows: table(rows, 512, 64, nested=True),
    ],
)
def test_several_normalized_and_gated(make, gated, tokens, monkeypatch):
    """5 tokens by clusters of two blocks."""
    if tokens == 5:
        weight = make(16)
        room = (88 if isinstance(weight, formats.Table) else 70 if weight.groups == 1 else 90) * 1024
        monkeypatch.setattr(ring, "device", lambda x: (8, room))
        assert streamed._layout_of_several(weight, StreamTiles(2, 8, 1), room).splits == 2
    weights = [make(37), make(37)] if gated else [make(37), make(16), make(70)]
    if isinstance(weights[0], formats.Table):
        weights = [replace(one, table=weights[0].table) for one in weights]
    x, gain, bias = torch.randn(tokens, 512).bfloat16(), torch.rand(512).bfloat16(), torch.randn(37).bfloat16()
    outs = [poisoned(tokens, one.shape[0], dtype=BF16) for one in weights]
    biases = [bias, *[None] * (len(weights) - 1)]
    products = [formats.Product(*one) for one in zip(weights, biases, outs, strict=True)]
    tiles = RowTiles(2, 4) if tokens > 8 else StreamTiles(2, 4 if tokens == 1 else 8, 1)
    stream(x, products, norm=Norm(gain, 0.5), gated=gated, tiles=tiles)
    y = x.float() * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 0.5) * gain.float()
    wanted = [formats.linear_reference(y, weight) for weight in weights]
    wanted[0] += bias.float()
    if gated:
        wanted = [torch.nn.functional.silu(wanted[0]) * wanted[1]]
    for found, expected in zip(outs, wanted, strict=False):
        allowed = {"rtol": 2**-5, "atol": 2**-6 * float(expected.abs().max())}
        torch.testing.assert_close(found.float(), expected, **allowed)


@pytest.mark.parametrize(
    ("make", "tokens", "room"),
    [
        (lambda: integers(70, 1280, 4, 20, dtype=BF16), 8, 200),
        (lambda: integers(150, 3328, 4, 26, dtype=BF16, twos_complement=True), 5, 70),
        (lambda: integers(33, 768, 4, 1, dtype=BF16), 2, 200),
        (lambda: replace(integers(33, 2048, 8, 1, twos_complement=True), divisor=127), 8, 70),
        (lambda: integers(40, 1088, 8, 34, dtype=BF16), 3, 80),  # 17 for two
        (lambda: table(70, 1280, 64), 5, 200),
        (lambda: table(37, 2048, 64, nested=True), 8, 100),
    ],
)
def test_few_tokens(make, tokens, room, monkeypatch):
    """By one block and by clusters of two: with little room, columns are cut into as many parts."""
    monkeypatch.setattr(ring, "device", lambda x: (16, room * 1024))
    weight = make()
    splits = streamed._layout_of_several(weight, STREAM_OF_SEVERAL, room * 1024).splits
    assert splits == (1 if room == 200 else 2)
    _several(weight, tokens, None)


@pytest.mark.parametrize(
    ("make", "tokens", "tiles"),
    [
        (lambda: integers(70, 1280, 4, 20, dtype=BF16), 16, RowTiles(2, 4)),
        (lambda: integers(150, 3328, 4, 26, dtype=BF16, twos_complement=True), 13, RowTiles(1, 4, 3, 4)),
        (lambda: integers(33, 768, 4, 1, dtype=BF16), 9, RowTiles(1, 8, 2)),
        (lambda: replace(integers(33, 2048, 8, 1, twos_complement=True), divisor=127), 16, RowTiles(2, 4, 8, 3)),
        (lambda: integers(40, 1088, 8, 34, dtype=BF16), 9, RowTiles(1, 4, 2, 2)),  # parts of 8 steps and 9
        (lambda: integers(40, 1088, 8, 34, dtype=BF16), 9, RowTiles(1, 4, 2, 1)),
        (lambda: table(70, 1280, 64), 12, RowTiles(2, 4)),
        (lambda: table(37, 2048, 64, nested=True), 16, RowTiles(2, 8)),
    ],
)
def test_tokens_of_rows(make, tokens, tiles):
    _several(make(), tokens, tiles)


def _several(weight: formats.Integers | formats.Table, tokens: int, tiles: RowTiles | None) -> None:
    rows, width = weight.shape
    x, bias = torch.randn(tokens, width).bfloat16(), torch.randn(rows).bfloat16()
    before = torch.randn(tokens, rows + 3).bfloat16()
    out = before.clone()
    stream(x, [formats.Product(weight, bias, out[:, :rows])], add=True, tiles=tiles)
    wanted = formats.linear_reference(x.float(), weight, bias.float()) + before[:, :rows].float()
    assert_near(out[:, :rows], wanted)
    assert torch.equal(out[:, rows:], before[:, rows:])
