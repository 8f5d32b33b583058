"""Launching a compiled kernel: with structures among its arguments, and while the kernel before still runs.

PyTorch launches what it has compiled with tensors and numbers, and without attributes, so this is the driver's own
call, as its manual has it (cuLaunchKernelEx). Overlap is programmatic dependent launch (compute capability 9); in a
graph that is captured, the attribute becomes an edge of that kind.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

Shape = tuple[int, int, int]
Argument = ctypes.c_void_p | ctypes.c_int | ctypes.Array[Any]

_STREAM_SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, padding to 8 bytes, and a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


def launch(kernel: Any, grid: Shape, block: Shape, args: Sequence[Argument], *, overlap: bool) -> None:
    """Launch one of PyTorch's compiled kernels on the current stream; with `overlap`, while the one before still runs.

    RuntimeError with the driver's number.
    """
    pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
    allowed = _Attribute(id=_STREAM_SERIALIZATION, value=1)
    stream = torch.cuda.current_stream().cuda_stream
    config = _Config(*grid, *block, 0, stream, ctypes.pointer(allowed), int(overlap))
    failed = _driver().cuLaunchKernelEx(ctypes.byref(config), kernel.func, pointers, None)
    if failed:
        raise RuntimeError(f"cuLaunchKernelEx failed with CUDA error {failed}.")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
