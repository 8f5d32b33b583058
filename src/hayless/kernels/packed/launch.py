"""Starting a compiled kernel while the one before it still runs: programmatic dependent launch, compute capability 9.

PyTorch launches what it has compiled without attributes, so this is the driver's own call, as its manual has it
(cuLaunchKernelEx). In a graph that is captured, the attribute becomes an edge of that kind.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, int, int]

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


def launch_overlapping(kernel: Any, grid: Shape, block: Shape, args: list[Tensor | int]) -> None:
    """Launch one of PyTorch's compiled kernels on the current stream. RuntimeError with the driver's number."""
    values = [ctypes.c_void_p(arg.data_ptr()) if isinstance(arg, Tensor) else ctypes.c_int(arg) for arg in args]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    allowed = _Attribute(id=_STREAM_SERIALIZATION, value=1)
    stream = torch.cuda.current_stream().cuda_stream
    config = _Config(*grid, *block, 0, stream, ctypes.pointer(allowed), 1)
    failed = _driver().cuLaunchKernelEx(ctypes.byref(config), kernel.func, pointers, None)
    if failed:
        raise RuntimeError(f"cuLaunchKernelEx failed with CUDA error {failed}.")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
