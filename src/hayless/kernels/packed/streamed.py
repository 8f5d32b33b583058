"""y = Wx for 1 to 16 tokens and 4 or 8 bits a weight, in CUDA C++ (streamed*.cu), with W always on its way.

One token's product is over before memory has come up to speed: of 7 µs that 4096 × 4096 took in 4 bits, its 9 MB are
2. This kernel keeps memory at work across the gaps: what is multiplied next is copied meanwhile, and with `overlap`
so is the beginning of the next matrix, while the kernel before still runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.kernels.compiled import Argument, compiled, is_recent, launch, most_shared, why_not
from hayless.kernels.linear import Norm
from hayless.kernels.packed import codes
from hayless.kernels.packed.formats import Integers, Packed, Palette, Product, Table
from hayless.kernels.packed.tiles import STREAM_OF_SEVERAL, StreamTiles, stream_tiles_for

MOST_TOKENS = 16
_BEFORE = tuple(Path(__file__).with_name(name) for name in ("codes.cu", "ring.cu"))
_ONE, _SEVERAL = (Path(__file__).with_name(name) for name in ("streamed.cu", "streamed_few.cu"))
_SHARED = 200 * 1024
"""Bytes of shared memory of a block."""
_OTHER = 4 * 1024
"""Of these, for small arrays that the source has besides."""
_TABLE_BYTES = 32 * 1024
_ENOUGH_STAGES = 4
_MOST_SPLITS = 2
"""Parts of the columns. To add up takes a cluster 3 µs a tile, and with more parts tiles are more turns."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A block's shared memory: parts of a step, bytes of a row's scales that come with it, steps of each warp that are
    on their way, and bytes in all; and the parts of the columns, each of a block."""

    run: int
    scales: int
    stages: int
    shared: int
    splits: int = 1


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
    width, group = weight.shape[1], codes.group(weight)
    span = _span(weight)
    fewest = span // 4 if len(x) == 1 else span // 2
    if width % span or (group % span and group not in (span // 2, fewest)):
        return f"it does not read groups of {group} of {width} columns"
    scale = codes.scale(weight)
    if weight.groups > 1 and weight.groups * scale.element_size() % 4:
        return f"{weight.groups} scales a row are no whole words"
    if any(tensor.data_ptr() % 16 for tensor in (x, weight.codes, scale)):
        return "x, codes and scales must start at multiples of 16 bytes"
    room = _device(x)[1]
    if len(x) == 1:
        found = [_layout(weight, _tiles_for(weight, rows, 1), room) for rows in (1, 32)]
    else:
        found = [_layout_of_several(weight, len(x), STREAM_OF_SEVERAL, room)]
    if min(one.stages for one in found) < 2:
        return f"{width} columns do not fit into shared memory"
    if found[0].splits > 1 and not is_recent(x):
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
    tiles: StreamTiles | None = None,
) -> None:
    """Write x Wᵀ + bias of every product, whose weights have one form (`multiply_each`), of x or of RMSNorm(x).

    `gated`: of two products silu(first) · second is written, to the `out` of the first. With `add` it comes on top of
    what is there. With `overlap` weights are read while the kernel before, which must not write them, still runs, on
    devices that can (sm_90). NotSupported where `tiles` leave no room in shared memory.
    """
    weight, each = products[0].weight, 8 if gated else 16
    processors, room = _device(x)
    overlap = overlap and is_recent(x)
    more = {"MATRICES": len(products), "NORM": int(norm is not None), "GATED": int(gated), "OVERLAP": int(overlap)}
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    args: list[Argument] = [ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(gain.data_ptr()), ctypes.c_float(eps)]
    if len(x) == 1:
        source, name = _ONE, "packed_stream"
        tiles = tiles or _tiles_for(weight, sum(one.weight.shape[0] for one in products), processors)
        layout, several = _layout(weight, tiles, room), []
        more["MIX"] = _mix(weight)
    else:
        source, name, tiles = _SEVERAL, "packed_stream_few", tiles or STREAM_OF_SEVERAL
        layout, several = _layout_of_several(weight, len(x), tiles, room), [ctypes.c_int(len(x))]
        more |= {"MIX": 2, "TILES": -(-len(x) // 8), "SPLITS": layout.splits, "CLUSTER": int(layout.splits > 1)}
    if layout.stages < 1:
        raise NotSupported(f"{tiles} leave no room in shared memory for weights on their way.")
    kernel = compiled((*_BEFORE, source), name, _definitions(x, weight, tiles, layout) | more, x.device.index)
    matrices, blocks = codes.matrices(products, each * tiles.bands, gated=gated)
    args += [matrices, ctypes.c_int(blocks), ctypes.c_int(add), *several]
    clusters = min(blocks, processors // layout.splits)
    grid = (max(1, clusters) * layout.splits, 1, 1)
    launch(kernel, grid, (32 * tiles.warps, 1, 1), args, layout.shared, overlap=overlap)


def _tiles_for(weight: Integers | Table, rows: int, processors: int) -> StreamTiles:
    return stream_tiles_for(rows, processors, codes.bits(weight), table=isinstance(weight, Table))


def _device(x: Tensor) -> tuple[int, int]:
    """Processors, and bytes of shared memory for a block."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count, min(_SHARED, most_shared(x.device.index))


def _definitions(x: Tensor, weight: Integers | Table, tiles: StreamTiles, layout: _Layout) -> dict[str, int]:
    """What the source is compiled for, whatever the products."""
    return codes.form(x, weight) | {
        "WIDTH": weight.shape[1],
        "BANDS": tiles.bands,
        "WARPS": tiles.warps,
        "RUN": layout.run,
        "STAGES": layout.stages,
        "SCALES": layout.scales,
    }


def _layout(weight: Integers | Table, tiles: StreamTiles, room: int) -> _Layout:
    """With as many steps on their way as there is room for."""
    run = tiles.run if _is_whole(weight, tiles.run) else 1
    scales, width = _scale_bytes(weight, run), weight.shape[1]
    units = width * _mix(weight) // _span(weight)
    fixed = 2 * _span(weight) * run + 2 * width + 8 * units + 2 * 4 * tiles.warps * 16 * tiles.bands
    step = tiles.warps * tiles.bands * (1024 * run + 16 * scales)
    stages = min(tiles.stages, (room - _OTHER - fixed) // step)
    return _Layout(run, scales, stages, fixed + stages * step)


def _layout_of_several(weight: Integers | Table, tokens: int, tiles: StreamTiles, room: int) -> _Layout:
    """With the fewest parts of the columns that leave room for enough steps on their way, or else the most steps."""
    rows, padded, steps = 16 * tiles.bands, 8 * -(-tokens // 8), weight.shape[1] // _span(weight)
    scales, table = _scale_bytes(weight, 1), isinstance(weight, Table)
    step = tiles.warps * tiles.bands * (1024 + 16 * scales)
    found = []
    for splits in range(1, _MOST_SPLITS + 1):
        x = padded * (-(-steps // splits) * _span(weight) * 2 + 16)
        fixed = table * _TABLE_BYTES + x + 4 * padded * (tiles.warps * (rows + 4) + 2 * splits * rows + 2)
        stages = min(tiles.stages, (room - _OTHER - fixed) // step)
        found.append(_Layout(1, scales, stages, fixed + stages * step + _OTHER, splits))
        if stages >= _ENOUGH_STAGES:
            return found[-1]
    return max(found, key=lambda one: one.stages)


def _is_whole(weight: Integers | Table, run: int) -> bool:
    """Whether rows are whole times so many parts, these have whole groups or groups whole times these, and their scales
    are copied at once."""
    columns, width, group, scales = run * _span(weight), weight.shape[1], codes.group(weight), _scale_bytes(weight, run)
    if width % columns or (group % columns and columns % group):
        return False
    return weight.groups == 1 or (scales <= 16 and weight.groups * codes.scale(weight).element_size() % scales == 0)


def _scale_bytes(weight: Integers | Table, run: int) -> int:
    """That are copied of a row's scales with so many parts: where they have fewer, as much as is copied at once."""
    scales = max(1, run * _span(weight) // codes.group(weight))
    return max(4, scales * codes.scale(weight).element_size()) if weight.groups > 1 else 0


def _span(weight: Integers | Table) -> int:
    """Columns of a row that its four lanes hold, 16 bytes each."""
    return 512 // codes.bits(weight)


def _mix(weight: Integers | Table) -> int:
    """Groups of so many columns."""
    return max(1, _span(weight) // codes.group(weight))
