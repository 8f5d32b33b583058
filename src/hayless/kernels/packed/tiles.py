"""How the packed kernels part their work: one table, and what a sweep may choose from.

`benchmarks/tune_packed.py` times the candidates on a GPU and prints the best.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VectorTiles:
    """One token: rows and units of the weight that a program takes at a time, its warps, tiles on their way."""

    rows: int
    units: int
    warps: int
    stages: int = 3


@dataclass(frozen=True, slots=True)
class MatrixTiles:
    """Several tokens, in Triton: the same, and the parts into which `in` is split among programs."""

    rows: int
    units: int
    warps: int
    splits: int
    stages: int = 3


@dataclass(frozen=True, slots=True)
class CoreTiles:
    """In CUDA: 16 · `bands` rows a block, `warps` that share its columns, steps of 128 columns whose loads are under
    way together, and the parts into which `in` is split among blocks."""

    bands: int
    warps: int
    depth: int
    splits: int = 1


VECTOR_CANDIDATES = [
    VectorTiles(rows, units, warps, stages)
    for rows in (4, 8, 16, 32)
    for units in (128, 256, 512)
    for warps in (2, 4, 8)
    for stages in (2, 3, 4)
    if 1024 <= rows * units <= 1024 * warps
]
MATRIX_CANDIDATES = [
    MatrixTiles(rows, units, warps, splits, stages)
    for rows in (32, 64, 128)
    for units in (16, 32, 64)
    for warps in (4, 8)
    for splits in (1, 2, 4, 8)
    for stages in (2, 3, 4)
    if rows * units <= 4096
]
CORE_CANDIDATES = [
    CoreTiles(bands, warps, depth, splits)
    for bands in (1, 2, 4)
    for warps in (4, 8)
    for depth in (1, 2, 4)
    for splits in (1, 2, 4)
    if bands * depth <= 4
]


def vector_tiles_for(bits: int) -> VectorTiles:
    """For one token; not measured yet."""
    return VectorTiles(16, 128, 4) if bits > 4 else VectorTiles(8, 512, 4)


def matrix_tiles_for(tokens: int, rows: int, units: int) -> MatrixTiles:
    """For several tokens, `rows` of the weight and `units` a row; not measured yet."""
    size = 64
    splits = next((s for s in (1, 2, 4) if rows // size * s >= 128), 8)
    return MatrixTiles(size, 16, 4, max(1, min(splits, units // 64)))


def core_tiles_for(tokens: int, rows: int, width: int) -> CoreTiles:
    """For the CUDA kernel; not measured yet."""
    bands = 1 if tokens <= 8 else 2
    blocks = -(-rows // (16 * bands))
    splits = next((s for s in (1, 2) if blocks * s >= 256), 4)
    return CoreTiles(bands, 8 if tokens <= 16 else 4, 2 // bands, max(1, min(splits, width // 1024)))
