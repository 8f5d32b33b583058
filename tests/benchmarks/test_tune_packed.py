"""The sweep of packed kernels' tiles, as far as it goes without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.packed import tiles
from hayless.kernels.packed.formats import Integers
from hayless.kernels.packed.tensor_cores import fits

tune_packed = pytest.importorskip("benchmarks.tune_packed", reason="benchmarks are not part of this distribution")


def test_it_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_packed.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", [1, 2, 8, 16, 17, 64])
@pytest.mark.parametrize(("rows", "width"), [(12288, 4096), (4096, 11008), (28672, 8192), (8, 32)])
def test_what_is_chosen_could_have_been_swept(tokens, rows, width):
    core = tiles.core_tiles_for(tokens, rows, width, 4)
    x = torch.empty(tokens, width, dtype=torch.bfloat16, device="meta")
    codes = torch.empty(rows, width // 2, dtype=torch.uint8, device="meta")
    weight = Integers(codes, torch.empty(rows, width // 32, device="meta"), 4)
    assert core in tiles.CORE_CANDIDATES and fits(x, weight, core)
    if tokens > 1:
        assert tiles.matrix_tiles_for(tokens, rows, width // 8) in tiles.MATRIX_CANDIDATES
    assert {tiles.vector_tiles_for(bits) for bits in (1, 2, 4, 8)} <= set(tiles.VECTOR_CANDIDATES)


@pytest.mark.parametrize(
    ("tokens", "kind"), [(1, "StreamTiles"), (8, "StreamTiles"), (9, "RowTiles"), (16, "RowTiles")]
)
def test_streamed_products_are_swept_by_tiles_that_they_take(tokens, kind, monkeypatch):
    monkeypatch.setattr(tune_packed.streamed, "unsupported", lambda x, weight: "")
    x = torch.empty(tokens, 512, dtype=torch.bfloat16, device="meta")
    _, candidates = tune_packed._design("streamed", x, None)
    assert {type(one).__name__ for one in candidates} == {kind}
