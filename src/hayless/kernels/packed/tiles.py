"""How the packed kernels part their work: one table, and what a sweep may choose from.

`benchmarks/tune_packed.py` times the candidates on a GPU and prints the best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")


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
    """In CUDA: 16 · `bands` rows a block, `warps` that share its columns, steps on their way, the parts into which `in`
    is split among blocks, times 16 bytes of a row that a lane reads in a step, and whether those may be of several
    groups."""

    bands: int
    warps: int
    depth: int
    splits: int = 1
    run: int = 1
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class StreamTiles:
    """Up to 8 tokens, weights copied ahead: 16 · `bands` rows that a block multiplies at once, its warps, the parts of
    a row, side by side, that a warp takes in a step where it can, and the most steps of a warp on their way."""

    bands: int
    warps: int
    run: int = 2
    stages: int = 16


@dataclass(frozen=True, slots=True)
class RowTiles:
    """9 to 16 tokens, likewise: 16 · `bands` rows that a warp multiplies at once, a block's warps, the most steps of a
    warp on their way, and the parts into which `in` is split among blocks; 0: as many as take the least time."""

    bands: int
    warps: int
    stages: int = 3
    splits: int = 0


_VECTOR = {1: VectorTiles(8, 512, 4), 2: VectorTiles(8, 512, 4), 4: VectorTiles(16, 256, 4), 8: VectorTiles(16, 128, 4)}
"""By bits, for one token; 4 and 8 as an H100 has them fastest."""
_MATRIX = {64: MatrixTiles(64, 16, 4, splits=1)}
_CORE = {16: CoreTiles(2, 8, 1), 64: CoreTiles(1, 4, 1)}
"""By the most tokens that they are for; parts are added until the device is full. 9 to 16 as an H100 and an H200 have
them fastest, or nearly, on Llama-7B's matrices and one of 28672 × 8192."""
_ONE, _ONE_SMALL = CoreTiles(2, 8, 1, mixed=True), CoreTiles(1, 8, 1, run=2, mixed=True)
_ONE_WIDE = CoreTiles(2, 8, 1, splits=2, run=2, mixed=True)
"""Up to 8 tokens: many rows; few rows; few, wide ones. As an H200 has them fastest for one token, or nearly."""
_TALL = CoreTiles(4, 4, 1, splits=2)
"""9 to 16 tokens and a matrix of few bits and many rows."""
_STREAM, _STREAM_FEW = StreamTiles(2, 16, 1), StreamTiles(1, 16)
_STREAM_STAGES, _STREAM_STAGES_OF_TABLE = {4: 3, 8: 4}, 2
"""One token; the second for 4 bits where processors have less than 32 rows each. A block with more steps on their way
leaves no room for one of the next product beside it. As an H200 has steps of a model of Llama-7B's shape fastest."""
STREAM_OF_SEVERAL = StreamTiles(2, 8, 1)
"""2 to 8 tokens, likewise."""
ROWS = RowTiles(2, 16)
"""9 to 16 tokens, as an H200 has a layer's products at Llama-7B's shape fastest in all forms, or nearly."""
_MOST_SPLITS, _BUSY = 16, 8
"""Parts of the columns for these; warps that keep a processor's memory at work."""
_ENOUGH = {"matrix": 128, "core": 256}
"""Programs and blocks that fill a device."""

VECTOR_CANDIDATES = [
    VectorTiles(rows, units, warps, stages)
    for rows in (4, 8, 16, 32)
    for units, warps in ((128, 4), (256, 4), (512, 4), (512, 8))
    for stages in (2, 3, 4)
    if 2048 <= rows * units <= 8192
]
MATRIX_CANDIDATES = [
    MatrixTiles(rows, units, 4, splits, stages)
    for rows in (64, 128)
    for units in (16, 32)
    for splits in (1, 2, 4, 8)
    for stages in (3, 4)
    if rows * units <= 2048
]
CORE_CANDIDATES = [
    CoreTiles(bands, warps, depth, splits, run, mixed)
    for mixed in (True, False)
    for bands in (1, 2, 4)
    for warps in (4, 8)
    for depth, run in ((1, 1), (2, 1), (1, 2), (2, 2), (1, 4))
    for splits in (1, 2, 4)
    if bands * depth * run <= 4
]

STREAM_CANDIDATES = [
    StreamTiles(bands, warps, run)
    for bands in (1, 2, 4)
    for warps in (8, 16)
    for run in (1, 2)
    if bands * warps * run <= 64
]
ROW_CANDIDATES = [RowTiles(bands, warps, stages) for bands in (1, 2) for warps in (8, 16) for stages in (3, 8)]


def vector_tiles_for(bits: int) -> VectorTiles:
    """For one token."""
    return _VECTOR[bits]


def matrix_tiles_for(tokens: int, rows: int, units: int) -> MatrixTiles:
    """For so many tokens, rows of the weight and units a row."""
    tiles = _for(_MATRIX, tokens)
    return replace(tiles, splits=_parts(-(-rows // tiles.rows), _ENOUGH["matrix"], units // (4 * tiles.units)))


def core_tiles_for(tokens: int, rows: int, width: int, bits: int) -> CoreTiles:
    """For so many tokens, rows of the weight and columns of so many bits."""
    if tokens <= 8:
        return _ONE if rows >= 8192 else _ONE_SMALL if width <= 8192 else _ONE_WIDE
    if 8 < tokens <= 16 and bits < 8 and rows >= 12288 and width >= 2048:
        return _TALL
    tiles = _for(_CORE, tokens)
    return replace(tiles, splits=_parts(-(-rows // (16 * tiles.bands)), _ENOUGH["core"], width // 1024))


def stream_tiles_for(rows: int, processors: int, bits: int, *, table: bool) -> StreamTiles:
    """For so many rows of all matrices; `table`: of sixteen values, which takes shared memory."""
    tiles = _STREAM_FEW if bits == 4 and rows < 32 * processors else _STREAM
    return replace(tiles, stages=_STREAM_STAGES_OF_TABLE if table else _STREAM_STAGES[bits])


def row_splits_for(tiles: int, steps: int, processors: int, fewest: int = 1) -> int:
    """Into how many parts `steps` are split so that `tiles` of rows take the least time; no fewer than `fewest`.

    A processor has ⌈tiles / (processors / splits)⌉ tiles of ⌈steps / splits⌉ steps, and less than `_BUSY` warps take as
    long as these. What a part gives is written and read again, which costs as much as 2 steps.
    """

    def time(splits: int) -> int:
        return max(-(-tiles // (processors // splits)), _BUSY) * (-(-steps // splits) + 2)

    most = min(_MOST_SPLITS, steps, processors)
    return min(range(min(fewest, most), most + 1), key=time)


def _for(table: dict[int, T], tokens: int) -> T:
    return next((tiles for most, tiles in table.items() if tokens <= most), table[max(table)])


def _parts(blocks: int, enough: int, most: int) -> int:
    """The fewest parts, of 1, 2 and 4, with which blocks are enough, but no more than `most`."""
    found = next((parts for parts in (1, 2) if blocks * parts >= enough), 4)
    return max(1, min(found, most))
