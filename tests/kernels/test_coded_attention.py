"""Attention over codes in CUDA C++, on a CPU (see `emulation`; on a GPU `test_quantized_attention.py`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels import coded_attention
from hayless.kernels.attention import Scratch, _turned
from hayless.kernels.linear import Norm
from hayless.kernels.quantized_cache import Held, fill, found
from tests.kernels.emulation import NEEDS, built

pytestmark = NEEDS
CPU = torch.device("cpu")


class _Launch(ctypes.Structure):
    _fields_ = (
        ("pointers", ctypes.c_void_p * 14),
        *((name, ctypes.c_int) for name in ("q_stride", "kv_heads", "slots")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
        *((name, ctypes.c_int) for name in ("rows", "splits")),
    )


def _emulated(folder: Path, sources: Sequence[Path], defined: dict[str, int]) -> Callable[..., None]:
    library = built(folder, sources, defined, "emulated_attention.h")

    def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
        assert block == (32 * defined["WARPS"], 1, 1)
        pointers = (ctypes.c_void_p * 14)(*(arg.value for arg in args[:14]))
        library.run(ctypes.byref(_Launch(pointers, *args[14:], grid[0], grid[2])))

    return kernel


@pytest.mark.parametrize(
    ("bits", "group", "channels", "heads", "dim", "splits", "normed"),
    [(4, 32, 32, 1, 128, 3, False), (8, 64, 32, 3, 64, 1, True), (2, 128, 64, 5, 128, 1, False)],
)
def test_parts_are_those_of_the_codes(bits, group, channels, heads, dim, splits, normed, tmp_path, monkeypatch):
    """Rows without codes, with a few and with many; what must not be read is NaN first."""
    torch.manual_seed(0)
    monkeypatch.setattr(
        coded_attention, "compiled", lambda sources, name, defined, device: _emulated(tmp_path, sources, defined)
    )
    monkeypatch.setattr(coded_attention, "launch", lambda kernel, grid, block, args: kernel(grid, block, args))
    lengths, kv_heads, residual, shared = [0, 3 * 128 + 5, 128 + 70], 2, 128, min(group, 64)
    slots, dtype = 512, torch.bfloat16
    held = Held.empty(
        (len(lengths), kv_heads), slots, dim,
        bits=bits, group=group, channels=channels, residual=residual, dtype=dtype, device=CPU,
    )  # fmt: skip
    for tensor in held.tensors:
        tensor.fill_(255 if tensor.dtype is torch.uint8 else torch.nan)
    for row, n in enumerate(lengths):
        fill(held[row], *(torch.randn(kv_heads, n, dim).to(dtype) for _ in range(2)))
    angles = torch.outer(torch.arange(slots), 100.0 ** -(torch.arange(dim // 2) / (dim // 2)))
    norm = Norm(torch.rand(dim).to(dtype), 1e-2) if normed else None
    q = torch.randn(len(lengths), 2 * kv_heads * heads * dim).to(dtype)[:, : kv_heads * heads * dim]
    scratch = Scratch(len(lengths), kv_heads * heads, kv_heads, dim, splits + 1, CPU)
    for tensor in (scratch.parts, scratch.maxima, scratch.sums):
        tensor.fill_(torch.nan)
    at = torch.tensor(lengths, dtype=torch.int32)
    coded_attention.coded_attention(q, angles.cos(), angles.sin(), at, held, scratch, shared=shared, q_norm=norm)
    assert scratch.parts[:, :, -1].isnan().all()
    parts, maxima, sums = scratch.parts[:, :, :-1], scratch.maxima[:, :, :-1], scratch.sums[:, :, :-1]
    for row, n in enumerate(lengths):
        coded = max(0, n - residual) // shared * shared
        if not coded:
            assert not parts[row].any() and not sums[row].any() and (maxima[row] == -torch.inf).all()
            continue
        keys, values = (x[:, :coded].float().repeat_interleave(heads, 0) for x in found(held[row], n))
        turned = _turned(q[row].view(-1, dim), norm, angles[n].cos(), angles[n].sin()).to(dtype).float()
        scores = (keys @ turned[:, :, None])[..., 0] * dim**-0.5
        most = scores.amax(1)
        torch.testing.assert_close(maxima[row].amax(1), most, rtol=1e-2, atol=2e-2)
        share = (maxima[row] - maxima[row].amax(1, keepdim=True)).exp()
        mine = (parts[row] * share[..., None]).sum(1) / (sums[row] * share).sum(1, keepdim=True)
        wanted = (scores.softmax(1)[:, None] @ values)[:, 0]
        torch.testing.assert_close(mine, wanted, rtol=2e-2, atol=2e-2)
