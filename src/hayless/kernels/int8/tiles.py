"""Tiles of the integer product, by shape."""

from __future__ import annotations

from dataclasses import dataclass

from hayless.kernels.int8.capacity import FEW


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a program of the product takes: rows of W, tokens, columns at a time, its warps, how many columns' tiles are
    on their way, and how many blocks of tokens share rows of W in the L2 cache. `tma`: by Hopper's copy engine, where
    there is one and 16 divides the width."""

    rows: int
    tokens: int
    columns: int
    warps: int
    stages: int
    group: int = 8
    tma: bool = False


def tiles_for(tokens: int, rows: int) -> Tiles:
    """Tiles by shape: of many tokens as an H200 has 4096 fastest, of fewer no GPU has chosen yet.
    `benchmarks/tune_int8.py` measures `candidates` beside them."""
    if tokens <= FEW:
        # Enough programs for all processors come before long ones.
        return Tiles(64, 16, 256, 4, 4) if rows >= 64 * 132 else Tiles(32, 16, 256, 2, 5)
    if tokens <= 64:
        return Tiles(64, 64, 128, 4, 4)
    if rows <= 16384:
        return Tiles(128, 128, 128, 4, 3, group=16, tma=True)
    return Tiles(128, 256, 128, 8, 4, tma=True)


def candidates(tokens: int) -> list[Tiles]:
    """Tiles worth timing for so many tokens; a tile and its stages must fit into 227 KB of shared memory."""
    if tokens <= FEW:
        shapes = [(rows, 16, columns) for rows in (32, 64, 128) for columns in (128, 256, 512)]
        ways = [(warps, stages, 1) for warps in (2, 4, 8) for stages in (3, 4, 6)]
    elif tokens <= 64:
        shapes = [(rows, per, columns) for rows in (64, 128) for per in (32, 64) for columns in (128, 256)]
        ways = [(warps, stages, 1) for warps in (4, 8) for stages in (3, 4, 5)]
    else:
        shapes = [(128, 128, 128), (128, 256, 128), (256, 128, 128), (128, 128, 64), (128, 256, 64), (256, 128, 64)]
        ways = [(warps, stages, group) for warps in (4, 8) for stages in (3, 4, 5) for group in (4, 8, 16)]
    found = []
    for rows, per, columns in shapes:
        for warps, stages, group in ways:
            few_registers = rows * per <= 16384 * warps // 4
            if few_registers and (rows + per) * columns * stages <= 227 * 1024 and rows * columns >= 1024 * warps:
                found += [Tiles(rows, per, columns, warps, stages, group, tma) for tma in (False, True)]
    return found
