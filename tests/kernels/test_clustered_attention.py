"""Attention by blocks of clusters, in CUDA C++ on a CPU (see `emulation`); on a GPU the kernel itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels import clustered_attention as clustered
from hayless.kernels.attention import decode_attention_reference
from hayless.kernels.linear import Norm
from tests.kernels.emulation import NEEDS, built

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = torch.bfloat16


class _Launch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v")),
        *((name, ctypes.c_int) for name in ("q_stride", "k_stride", "v_stride")),
        ("tensors", ctypes.c_void_p * 8),
        *((name, ctypes.c_int) for name in ("capacity", "offset")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
        *((name, ctypes.c_int) for name in ("kv_heads", "rows")),
    )


def _emulated(folder: Path, sources: Sequence[Path], defined: dict[str, int]) -> Callable[..., None]:
    library = built(folder, sources, defined, "emulated_clusters.h")

    def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
        assert block == (32 * defined["WARPS"], 1, 1) and grid[0] == defined["SPLITS"]
        tensors = (ctypes.c_void_p * 8)(*(arg.value for arg in args[6:14]))
        library.run(ctypes.byref(_Launch(*args[:6], tensors, *args[14:], *grid[1:])))

    return kernel


@pytest.fixture
def _on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(clustered, "compiled", lambda sources, name, defined, _: _emulated(tmp_path, sources, defined))
    monkeypatch.setattr(
        clustered, "launch", lambda kernel, grid, block, args, shared, overlap: kernel(grid, block, args)
    )


def _attends(heads: int, queries: int, dim: int, splits: int, lengths: list[int], *, normed: bool, offset: int) -> None:
    """What must not be read is NaN first."""
    torch.manual_seed(0)
    rows, capacity = len(lengths), 320
    random = lambda *shape: torch.randn(*shape).to(DEVICE, BF16)  # noqa: E731
    qkv = random(rows, (queries + 2) * heads * dim + 8)
    q, k, v, _ = qkv.split([queries * heads * dim, heads * dim, heads * dim, 8], 1)
    caches = [torch.full((rows, heads, capacity, dim), torch.nan, dtype=BF16, device=DEVICE) for _ in range(2)]
    for row, length in enumerate(lengths):
        for cache in caches:
            cache[row, :, :length] = random(heads, length, dim)
    expected_caches = [cache.clone() for cache in caches]
    angles = torch.outer(torch.arange(capacity), 10000 ** (-torch.arange(dim // 2) / (dim // 2))).to(DEVICE)
    norms = {name: Norm(1 + random(dim) / 4, 1e-3) if normed else None for name in ("q_norm", "k_norm")}
    held = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    out = torch.full((rows, queries * heads * dim), torch.nan, dtype=BF16, device=DEVICE)
    given = q, k, v, angles.cos(), angles.sin()
    clustered.clustered_attention(*given, held - offset, *caches, out, splits=splits, offset=offset, **norms)
    wanted = decode_attention_reference(*given, held, *expected_caches, **norms)
    torch.testing.assert_close(out.float(), wanted.float(), rtol=2e-2, atol=1e-2)
    for found, expected in zip(caches, expected_caches, strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7, equal_nan=True)


CASES = [
    (2, 1, 128, 8, [300, 0], False, 0),
    (1, 3, 128, 2, [65, 128, 1], True, 2),
    (2, 8, 64, 4, [200], False, 0),
    (1, 2, 256, 1, [37, 300], True, 0),
    (1, 5, 64, 8, [9, 260], False, -1),
]


@pytest.mark.parametrize(("heads", "queries", "dim", "splits", "lengths", "normed", "offset"), CASES)
@pytest.mark.usefixtures("_on_a_cpu")
class TestEmulated:
    pytestmark = NEEDS

    def test_a_new_token_attends(self, heads, queries, dim, splits, lengths, normed, offset):
        _attends(heads, queries, dim, splits, lengths, normed=normed, offset=offset)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize(("heads", "queries", "dim", "splits", "lengths", "normed", "offset"), CASES)
def test_a_new_token_attends(heads, queries, dim, splits, lengths, normed, offset):
    _attends(heads, queries, dim, splits, lengths, normed=normed, offset=offset)


@pytest.mark.parametrize(
    ("rows", "kv_heads", "capacity", "expected"), [(1, 32, 1024, 8), (1, 32, 128, 2), (8, 32, 4096, 1), (1, 8, 40, 1)]
)
def test_splits_fill_the_processors(rows, kv_heads, capacity, expected):
    assert clustered.splits_for(rows, kv_heads, capacity, 132) == expected
