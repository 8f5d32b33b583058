"""y = Wx for 1 to 16 tokens and 4 or 8 bits a weight, in CUDA C++ (streamed*.cu), with W always on its way.

One token's product is over before memory has come up to speed: of 7 µs that 4096 × 4096 took in 4 bits, its 9 MB are
2. This kernel keeps memory at work across the gaps: what is multiplied next is copied meanwhile, and with `overlap`
so is the beginning of the next matrix, while the kernel before still runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hayless.kernels.compiled import compiled, is_recent, launch, why_not
from hayless.kernels.linear import Norm
from hayless.kernels.packed import codes, ring, streamed_rows
from hayless.kernels.packed.formats import Integers, Packed, Palette, Product, Table
from hayless.kernels.packed.ring import Layout
from hayless.kernels.packed.tiles import STREAM_OF_SEVERAL, RowTiles, StreamTiles, stream_tiles_for

MOST_TOKENS = 16
FEW = 8
"""Tokens of which a block has its columns of x and rows are shared by its warps; more go by `streamed_rows`."""
_ONE, _SEVERAL = (Path(__file__).with_name(name) for name in ("streamed.cu", "streamed_few.cu"))
_TABLE_BYTES, _SMALL_TABLE_BYTES = 64 * 1024, 32 * 1024
_ENOUGH_STAGES = 4
_MOST_SPLITS = 2
"""Parts of the columns. To add up takes a cluster 3 µs a tile, and with more parts tiles are more turns."""


def unsupported(x: Tensor, weight: Packed) -> str:
    """Why the kernel cannot multiply x (tokens, in) and `weight`, in words; empty where it can."""
    if not x.is_cuda or torch.version.cuda is None or torch.cuda.get_device_capability(x.device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if not 0 < x.shape[0] <= MOST_TOKENS:
        return f"it takes up to {MOST_TOKENS} tokens, not {x.shape[0]}"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it multiplies in fp16 and bf16, not {x.dtype}"
    if isinstance(weight, Palette) or codes.bits(weight) not in (4, 8):
        return "it reads integers of 4 and 8 bits and tables of sixteen values"
    if isinstance(weight, Integers) and weight.zero is not None:
        return "it has no zero points"
    width, group, span = weight.shape[1], codes.group(weight), ring.span(weight)
    fewest = span // 4 if len(x) == 1 else span // 2
    if width % span or (group % span and group not in (span // 2, fewest)):
        return f"it does not read groups of {group} of {width} columns"
    scale = codes.scale(weight)
    if weight.groups > 1 and weight.groups * scale.element_size() % 4:
        return f"{weight.groups} scales a row are no whole words"
    if any(tensor.data_ptr() % 16 for tensor in (x, weight.codes, scale)):
        return "x, codes and scales must start at multiples of 16 bytes"
    stages, splits = _stages(x, weight)
    if stages < 2:
        return f"{width} columns do not fit into shared memory"
    if splits > 1 and len(x) <= FEW and not is_recent(x):
        return f"{width} columns of {len(x)} tokens need clusters of blocks"
    return why_not(x.device.index)


def stream(
    x: Tensor,
    products: Sequence[Product],
    *,
    norm: Norm | None = None,
    gated: bool = False,
    add: bool = False,
    overlap: bool = False,
    tiles: StreamTiles | RowTiles | None = None,
) -> None:
    """Write x Wᵀ + bias of every product, whose weights have one form (`multiply_each`), of x or of RMSNorm(x).

    `gated`: of two products silu(first) · second is written, to the `out` of the first. With `add` it comes on top of
    what is there. With `overlap` weights are read while the kernel before, which must not write them, still runs, on
    devices that can (sm_90). `tiles` of 9 tokens and more are `RowTiles`. NotSupported where they leave no room in
    shared memory.
    """
    if len(x) > FEW:
        assert tiles is None or isinstance(tiles, RowTiles)
        streamed_rows.multiply(x, products, norm=norm, gated=gated, add=add, overlap=overlap, tiles=tiles)
        return
    assert tiles is None or isinstance(tiles, StreamTiles)
    weight, each = products[0].weight, 8 if gated else 16
    processors, room = ring.device(x)
    overlap = overlap and is_recent(x)
    more = {"MATRICES": len(products), "NORM": int(norm is not None), "GATED": int(gated), "OVERLAP": int(overlap)}
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    args = [*ring.pointers(x, gain), ctypes.c_float(eps)]
    if len(x) == 1:
        sources, name = (*ring.SOURCES, _ONE), "packed_stream"
        tiles = tiles or _tiles_for(weight, sum(one.weight.shape[0] for one in products), processors)
        layout, several = _layout(weight, tiles, room), []
        more["MIX"] = _mix(weight)
    else:
        sources, name, tiles = (*ring.OF_SEVERAL, _SEVERAL), "packed_stream_few", tiles or STREAM_OF_SEVERAL
        layout, several = _layout_of_several(weight, tiles, room), [ctypes.c_int(len(x))]
        more |= {"MIX": 2, "TILES": 1, "SPLITS": layout.splits, "CLUSTER": int(layout.splits > 1)}
    kernel = compiled(sources, name, ring.definitions(x, weight, tiles, layout, more), x.device.index)
    matrices, blocks = codes.matrices(products, each * tiles.bands, gated=gated)
    args += [matrices, ctypes.c_int(blocks), ctypes.c_int(add), *several]
    clusters = min(blocks, processors // layout.splits)
    grid = (max(1, clusters) * layout.splits, 1, 1)
    launch(kernel, grid, (32 * tiles.warps, 1, 1), args, layout.shared, overlap=overlap)


def _stages(x: Tensor, weight: Integers | Table) -> tuple[int, int]:
    """Steps of a warp that fit into shared memory, and the parts into which columns are cut for that."""
    processors, room = ring.device(x)
    if len(x) == 1:
        return min(_layout(weight, _tiles_for(weight, rows, 1), room).stages for rows in (1, 32)), 1
    if len(x) <= FEW:
        layout = _layout_of_several(weight, STREAM_OF_SEVERAL, room)
    else:
        layout = streamed_rows.layout(weight, weight.shape[0], None, processors, room)
    return layout.stages, layout.splits


def _tiles_for(weight: Integers | Table, rows: int, processors: int) -> StreamTiles:
    return stream_tiles_for(rows, processors, codes.bits(weight), table=isinstance(weight, Table))


def _layout(weight: Integers | Table, tiles: StreamTiles, room: int) -> Layout:
    """With as many steps on their way as there is room for."""
    run = tiles.run if _is_whole(weight, tiles.run) else 1
    scales, width, table = ring.scale_bytes(weight, run), weight.shape[1], isinstance(weight, Table)
    span = ring.span(weight)
    units = 0 if table else width * _mix(weight) // span
    fixed = table * _TABLE_BYTES + 2 * span * run + 2 * width + 8 * units + 2 * 4 * tiles.warps * 16 * tiles.bands
    step = ring.step_bytes(tiles, run, scales)
    stages = min(tiles.stages, (room - ring.OTHER - fixed) // step)
    return Layout(run, scales, stages, fixed + stages * step)


def _layout_of_several(weight: Integers | Table, tiles: StreamTiles, room: int) -> Layout:
    """With the fewest parts of the columns that leave room for enough steps on their way, or else the most steps."""
    rows, span, scales = 16 * tiles.bands, ring.span(weight), ring.scale_bytes(weight, 1)
    steps, step = weight.shape[1] // span, ring.step_bytes(tiles, 1, scales)
    found = []
    for splits in range(1, _MOST_SPLITS + 1):
        x = FEW * (-(-steps // splits) * span * 2 + 16)
        sums = 4 * FEW * (tiles.warps * (rows + 4) + 2 * splits * rows + 2)
        fixed = isinstance(weight, Table) * _SMALL_TABLE_BYTES + x + sums
        stages = min(tiles.stages, (room - ring.OTHER - fixed) // step)
        found.append(Layout(1, scales, stages, fixed + stages * step + ring.OTHER, splits))
        if stages >= _ENOUGH_STAGES:
            return found[-1]
    return max(found, key=lambda one: one.stages)


def _is_whole(weight: Integers | Table, run: int) -> bool:
    """Whether rows are whole times so many parts, these have whole groups or groups whole times these, and their scales
    are copied at once."""
    columns, width, group = run * ring.span(weight), weight.shape[1], codes.group(weight)
    if width % columns or (group % columns and columns % group):
        return False
    scales = ring.scale_bytes(weight, run)
    return weight.groups == 1 or (scales <= 16 and weight.groups * codes.scale(weight).element_size() % scales == 0)


def _mix(weight: Integers | Table) -> int:
    """Groups of so many columns."""
    return max(1, ring.span(weight) // codes.group(weight))
