"""Bytes that PyTorch's CUDA allocator counts for a tensor, which are a little more than the tensor has.

The rules are those of c10/cuda/CUDACachingAllocator.cpp: sizes are multiples of 512 bytes; up to 1 MiB they are cut
from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, and larger ones get a segment of their own, a multiple of
2 MiB. A rest of up to 1 MiB is not cut off: it stays with the last tensor of its segment.
"""

from __future__ import annotations

_MIB = 2**20
_SMALLEST = 512
_LEAST_REST = _MIB
_OWN_SEGMENT = 10 * _MIB
_SHARED_SEGMENT = 20 * _MIB
_STEP = 2 * _MIB


def workspace_bytes(biases: bool) -> int:
    """What cuBLAS keeps for each thread and stream that multiplies: 32 MiB on Hopper, 8 before; with biases cuBLASLt
    keeps 1 more."""
    return (33 if biases else 32) * _MIB


def allocated_bytes(size: int) -> int:
    """Bytes counted for a tensor of `size` bytes in a process that has just begun."""
    rounded = -(-size // _SMALLEST) * _SMALLEST
    if rounded <= _MIB:
        return rounded
    if rounded < _OWN_SEGMENT:
        tensors = _SHARED_SEGMENT // rounded
        rest = _SHARED_SEGMENT - tensors * rounded
        return rounded + (rest // tensors if rest <= _LEAST_REST else 0)
    segment = -(-rounded // _STEP) * _STEP
    return segment if segment - rounded <= _LEAST_REST else rounded
