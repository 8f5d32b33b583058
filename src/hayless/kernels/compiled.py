"""CUDA C++ that is compiled at run time by PyTorch's NVRTC, and launched; no compiler needs to be installed."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hayless.kernels.driver import call

_MOST_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_MOST_SHARED_OF_DEVICE = 97
"""CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN."""
_CARVEOUT = 9
"""CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent."""
_PROGRAMMATIC = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""
Shape = tuple[int, int, int]
Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.Array[Any]

_INSTRUCTIONS = Path(__file__).with_name("instructions.cu")


def compiled(sources: tuple[Path, ...], name: str, defined: Mapping[str, int], device: int) -> Any:
    """The kernel `name` of files, with these definitions and what `instructions.cu` has before them; made once."""
    return _compiled(sources, name, tuple(defined.items()), device)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, padding to 8 bytes, and a union of 64 bytes."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


def is_recent(x: Tensor) -> bool:
    """Whether x is on a device that has clusters of blocks, launches that overlap and a copy engine (sm_90)."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)


@cache
def why_not(device: int) -> str:
    """Why nothing can be compiled for a device, found by trying; empty where it can."""
    try:
        _compile('extern "C" __global__ void nothing() {}', "nothing", device)
    except Exception as error:  # no NVRTC, no such function of PyTorch, a driver that is too old
        return f"PyTorch cannot compile CUDA C++ here ({type(error).__name__}: {error})"
    return ""


def launch(
    kernel: Any, grid: Shape, block: Shape, args: Sequence[Argument], shared: int = 0, *, overlap: bool = False
) -> None:
    """Launch one of PyTorch's compiled kernels on the current stream, with `shared` bytes of memory that blocks share.

    With `overlap` it may begin while the kernel before still runs, and must wait for it itself (programmatic dependent
    launch, sm_90); a captured graph keeps that. RuntimeError with the driver's number.
    """
    pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if shared:
        call("cuFuncSetAttribute", kernel.func, _MOST_SHARED, shared)
    if not overlap:
        call("cuLaunchKernel", kernel.func, *grid, *block, shared, stream, pointers, None)
        return
    if shared:  # all that there is, or a processor has what this kernel needs and the next finds none
        call("cuFuncSetAttribute", kernel.func, _CARVEOUT, 100)
    allowed = _Attribute(number=_PROGRAMMATIC, value=1)
    config = _Config(*grid, *block, shared, stream, ctypes.pointer(allowed), 1)
    call("cuLaunchKernelEx", ctypes.byref(config), kernel.func, pointers, None)


@cache
def most_shared(device: int) -> int:
    """Bytes of shared memory that a block may ask a device for."""
    found = ctypes.c_int()
    call("cuDeviceGetAttribute", ctypes.byref(found), _MOST_SHARED_OF_DEVICE, device)
    return found.value


@cache
def _compiled(sources: tuple[Path, ...], name: str, defined: tuple[tuple[str, int], ...], device: int) -> Any:
    text = "".join(f"#define {word} {value}\n" for word, value in defined)
    text += "".join(path.read_text(encoding="utf-8") for path in (_INSTRUCTIONS, *sources))
    return _compile(text, name, device)


def _compile(source: str, name: str, device: int) -> Any:
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    # PyTorch names the toolkit's headers to NVRTC and fails where there is no toolkit. No header is used here.
    cpp_extension.CUDA_HOME = home or ""
    try:
        with torch.cuda.device(device):
            return torch.cuda._compile_kernel(source, name)
    finally:
        cpp_extension.CUDA_HOME = home
