"""The CUDA C++ of packed products on a CPU: every thread is one, and single instructions are written out.

It shows that operands meet where they must, that nothing outside the codes is read, and that every output is written;
what the instructions themselves do only a GPU shows (`test_packed_gpu.py`).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.packed import formats, tensor_cores
from hayless.kernels.packed.tiles import CoreTiles
from tests.kernels.packed_weights import assert_near, integers, poisoned, table

COMPILER = shutil.which("g++")
pytestmark = [
    pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs g++ on Linux"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU itself runs it"),
]
HERE = Path(__file__).parent
SOURCE = Path(tensor_cores.__file__).with_name("tensor_cores.cu")


class _Launch(ctypes.Structure):
    _fields_ = (
        ("pointers", ctypes.c_void_p * 10),
        ("code_bytes", ctypes.c_long),
        *((name, ctypes.c_int) for name in ("m", "n", "width", "groups", "with_bias", "add", "blocks", "splits")),
    )


def _emulated(folder: Path, defined: dict[str, int]) -> Callable[..., None]:
    """The kernel compiled for the CPU, to be launched like one of PyTorch's."""
    before, instructions, launch = re.split(r"//@.*\n", (HERE / "emulated_cuda.h").read_text())
    source = re.sub(
        r"// -- instructions\n.*// -- end of instructions\n", lambda _: instructions, SOURCE.read_text(), flags=re.S
    )
    defines = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    (folder / "kernel.cpp").write_text(defines + before + source + launch)
    command = [COMPILER, "-O1", "-w", "-shared", "-fPIC", "-pthread", "kernel.cpp", "-o", "kernel.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "kernel.so"))

    def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
        assert block == (32 * defined["WARPS"], 1, 1)
        pointers = (ctypes.c_void_p * 10)(*(tensor.data_ptr() for tensor in args[:10]))
        library.run(ctypes.byref(_Launch(pointers, args[1].numel(), *args[10:], *grid[:2])))

    return kernel


@pytest.mark.parametrize(
    ("weight", "tokens", "tiles"),
    [
        (lambda: integers(37, 352, 4, 11, zero=True, twos_complement=True, dtype=torch.bfloat16), 9, (2, 4, 1, 1)),
        (lambda: integers(21, 384, 4, 1), 1, (1, 4, 2, 2)),
        (lambda: integers(33, 80, 8, 5, zero=True, dtype=torch.bfloat16), 3, (1, 4, 2, 1)),
        (lambda: integers(17, 512, 2, 2, twos_complement=True), 2, (1, 4, 2, 1)),
        (lambda: integers(18, 128, 8, 1, twos_complement=True), 2, (1, 4, 1, 1)),
        (lambda: table(18, 416, 32, nested=True), 10, (1, 4, 2, 2)),
        (lambda: table(18, 320, 64), 1, (1, 4, 1, 1)),
    ],
)
def test_tensor_cores(weight, tokens, tiles, tmp_path, monkeypatch):
    torch.manual_seed(0)
    weight = weight()
    rows, width = weight.shape
    x, bias = torch.randn(tokens, width).bfloat16(), torch.randn(rows).bfloat16()
    monkeypatch.setattr(tensor_cores, "unsupported", lambda x, weight: "")
    monkeypatch.setattr(tensor_cores, "_compiled", lambda defined, device: _emulated(tmp_path, dict(defined)))
    out = poisoned(tokens, rows, dtype=torch.bfloat16)
    # In Triton's interpreter bf16 is wrong.
    monkeypatch.setattr(tensor_cores, "add_splits", lambda parts, bias, out: out.copy_(parts.sum(0) + bias.float()))
    found = tensor_cores.multiply(x, weight, bias, out, tiles=CoreTiles(*tiles), divisor=tokens)
    expected = formats.linear_reference(x.float(), weight) / tokens + bias.float()
    before = torch.randn(tokens, rows).bfloat16()
    added = tensor_cores.multiply(x, weight, bias, before.clone(), tiles=CoreTiles(*tiles), divisor=tokens, add=True)
    torch.testing.assert_close(added.float(), before.float() + expected, rtol=2**-6, atol=2**-6)
    if isinstance(weight, formats.Integers):  # whole numbers are exact in bf16: only the result is rounded
        allowed = {"rtol": 2**-8, "atol": 1e-4 * float(expected.abs().max())}
        torch.testing.assert_close(found.float(), expected, **allowed)
    else:
        assert_near(found, expected)
