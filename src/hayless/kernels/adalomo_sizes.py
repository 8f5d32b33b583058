"""How much of an AdaLomo update is computed at once, which is what it takes beside weight, gradient and state."""

from __future__ import annotations

import math
from typing import Literal

CHUNK_ELEMENTS = 2**24
"""Elements of a matrix that plain PyTorch computes in float32 at once (as many rows as that is, one at least)."""
BLOCK = 1024
"""Rows, or columns, whose second moment a program of the kernels updates."""


def tile(rows: int) -> tuple[int, int]:
    """Rows and columns of the part of a matrix that a program of the kernels sums; at most 64 lie below each other."""
    return max(128, 16 * math.ceil(rows / 64 / 16)), 256


def scratch_bytes(shape: tuple[int, ...], device: Literal["cuda", "cpu"]) -> int:
    """Part of an update in float32; of the kernels what each tile sums by row, by column and in all."""
    if device == "cpu":
        return 4 * min(CHUNK_ELEMENTS, math.prod(shape))
    if len(shape) < 2:
        return 0
    rows, columns = shape[-2:]
    height, width = tile(rows)
    below, beside = math.ceil(rows / height), math.ceil(columns / width)
    return 4 * (beside * rows + below * columns + math.ceil(rows / BLOCK) + 2 * below * beside)
