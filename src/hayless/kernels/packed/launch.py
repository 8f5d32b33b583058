"""Launching a compiled kernel that takes structures: PyTorch launches what it has compiled with tensors and numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

_MOST_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
Shape = tuple[int, int, int]
Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.Array[Any]


def launch(kernel: Any, grid: Shape, block: Shape, args: Sequence[Argument], shared: int = 0) -> None:
    """Launch one of PyTorch's compiled kernels on the current stream, with `shared` bytes of memory that blocks share.

    RuntimeError with the driver's number.
    """
    pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if shared:
        _done("cuFuncSetAttribute", kernel.func, _MOST_SHARED, shared)
    _done("cuLaunchKernel", kernel.func, *grid, *block, shared, stream, pointers, None)


def _done(name: str, *args: Any) -> None:
    failed = getattr(_driver(), name)(*args)
    if failed:
        raise RuntimeError(f"{name} failed with CUDA error {failed}.")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
