"""Launching a compiled kernel that takes structures: PyTorch launches what it has compiled with tensors and numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

Shape = tuple[int, int, int]
Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.Array[Any]


def launch(kernel: Any, grid: Shape, block: Shape, args: Sequence[Argument]) -> None:
    """Launch one of PyTorch's compiled kernels on the current stream. RuntimeError with the driver's number."""
    pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    failed = _driver().cuLaunchKernel(kernel.func, *grid, *block, 0, stream, pointers, None)
    if failed:
        raise RuntimeError(f"cuLaunchKernel failed with CUDA error {failed}.")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
