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
from hayless.kernels.packed.tiles import RowTiles, StreamTiles, row_splits_for, row_tiles_for, stream_tiles_for

MOST_TOKENS = 16
_BEFORE = tuple(Path(__file__).with_name(name) for name in ("codes.cu", "tiles.cu"))
_RING, _ONE, _SEVERAL, _SUMS = (
    Path(__file__).with_name(name) for name in ("ring.cu", "streamed.cu", "streamed_few.cu", "streamed_sums.cu")
)
_SHARED = 200 * 1024
"""Bytes of shared memory of a block."""
_OTHER = 4 * 1024
"""Of these, for small arrays that the source has besides."""
_TABLE_BYTES = 32 * 1024
_SUM_WARPS = 4
"""Of a block that adds up what parts give, four rows of a token by each thread."""


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
    processors, room = _device(x)
    if len(x) == 1:
        stages = min(_layout(weight, _tiles_for(weight, rows, 1), room).stages for rows in (1, 32))
    else:
        stages = _layout_of_several(weight, weight.shape[0], len(x), row_tiles_for(len(x)), processors, room).stages
    if stages < 2:
        return f"{width} columns do not fit into shared memory"
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
    devices that can (sm_90). What parts of the columns give for several tokens, (splits, tokens, out) in float32, is
    taken from PyTorch's allocator. NotSupported where `tiles` (`RowTiles` for several tokens) leave no room in shared
    memory.
    """
    more = {"MATRICES": len(products), "NORM": int(norm is not None), "GATED": int(gated)}
    more["OVERLAP"] = int(overlap and is_recent(x))
    if len(x) == 1:
        chosen = tiles or _tiles_for(products[0].weight, _rows(products), _device(x)[0])
        assert isinstance(chosen, StreamTiles)
        _stream_one(x, products, norm, add, chosen, more)
    else:
        several = tiles or row_tiles_for(len(x))
        assert isinstance(several, RowTiles)
        _stream_several(x, products, norm, add, several, more)


def _stream_one(
    x: Tensor, products: Sequence[Product], norm: Norm | None, add: bool, tiles: StreamTiles, more: dict[str, int]
) -> None:
    weight, (processors, room) = products[0].weight, _device(x)
    layout = _with_room(_layout(weight, tiles, room), tiles)
    defined = _definitions(x, weight, tiles, layout) | more | {"MIX": _mix(weight)}
    kernel = compiled((*_BEFORE, _RING, _ONE), "packed_stream", defined, x.device.index)
    matrices, count = codes.matrices(products, (8 if more["GATED"] else 16) * tiles.bands, gated=bool(more["GATED"]))
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    args = [*_pointers(x, gain), ctypes.c_float(eps), matrices, ctypes.c_int(count), ctypes.c_int(add)]
    grid, block = (min(count, processors), 1, 1), (32 * tiles.warps, 1, 1)
    launch(kernel, grid, block, args, layout.shared, overlap=bool(more["OVERLAP"]))


def _stream_several(
    x: Tensor, products: Sequence[Product], norm: Norm | None, add: bool, tiles: RowTiles, more: dict[str, int]
) -> None:
    """Parts of the columns by some blocks each, then their sum by another kernel."""
    weight, tokens, (processors, room) = products[0].weight, len(x), _device(x)
    matrices, count = codes.matrices(products, (8 if more["GATED"] else 16) * tiles.bands, gated=bool(more["GATED"]))
    layout = _with_room(_layout_of_several(weight, _rows(products), tokens, tiles, processors, room), tiles)
    more |= {"MIX": 2, "TILES": -(-tokens // 8), "SPLITS": layout.splits}
    defined = _definitions(x, weight, tiles, layout) | more
    rows, padded, overlap = 16 * tiles.bands * count, 8 * more["TILES"], bool(more["OVERLAP"])
    sums = torch.empty(layout.splits, padded, rows, dtype=torch.float32, device=x.device)
    squares = sums if norm is None else torch.empty(layout.splits, padded, dtype=torch.float32, device=x.device)
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    kernel = compiled((*_BEFORE, _RING, _SEVERAL), "packed_stream_few", defined, x.device.index)
    args = [*_pointers(x, gain), matrices, ctypes.c_int(count), ctypes.c_int(tokens), *_pointers(sums, squares)]
    grid, block = (max(1, processors // layout.splits) * layout.splits, 1, 1), (32 * tiles.warps, 1, 1)
    launch(kernel, grid, block, args, layout.shared, overlap=overlap)

    defined = codes.form(x, weight) | more | {"BANDS": tiles.bands, "WARPS": _SUM_WARPS}
    kernel = compiled((*_BEFORE, _SUMS), "packed_sums", defined, x.device.index)
    numbers = [ctypes.c_int(number) for number in (count, add, tokens)]
    args = [*_pointers(sums, squares), ctypes.c_float(eps), ctypes.c_int(x.shape[1]), matrices, *numbers]
    threads = tokens * rows // (8 if more["GATED"] else 4)
    launch(kernel, (-(-threads // (32 * _SUM_WARPS)), 1, 1), (32 * _SUM_WARPS, 1, 1), args, overlap=overlap)


def _with_room(layout: _Layout, tiles: StreamTiles | RowTiles) -> _Layout:
    if layout.stages < 1:
        raise NotSupported(f"{tiles} leave no room in shared memory for weights on their way.")
    return layout


def _pointers(*tensors: Tensor) -> list[Argument]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _rows(products: Sequence[Product]) -> int:
    return sum(one.weight.shape[0] for one in products)


def _tiles_for(weight: Integers | Table, rows: int, processors: int) -> StreamTiles:
    return stream_tiles_for(rows, processors, codes.bits(weight), table=isinstance(weight, Table))


def _device(x: Tensor) -> tuple[int, int]:
    """Processors, and bytes of shared memory for a block."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count, min(_SHARED, most_shared(x.device.index))


def _definitions(x: Tensor, weight: Integers | Table, tiles: StreamTiles | RowTiles, layout: _Layout) -> dict[str, int]:
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


def _layout_of_several(
    weight: Integers | Table, rows: int, tokens: int, tiles: RowTiles, processors: int, room: int
) -> _Layout:
    """With the parts of the columns that take the least time, or more where x would leave no room for two steps."""
    scales, steps, padded = _scale_bytes(weight, 1), weight.shape[1] // _span(weight), 8 * -(-tokens // 8)
    step = tiles.warps * tiles.bands * (1024 + 16 * scales)

    def layout(splits: int) -> _Layout:
        x = padded * (-(-steps // splits) * _span(weight) * 2 + 16)
        fixed = isinstance(weight, Table) * _TABLE_BYTES + x
        stages = min(tiles.stages, (room - _OTHER - fixed) // step)
        return _Layout(1, scales, stages, fixed + stages * step, splits)

    if tiles.splits:
        return layout(tiles.splits)
    fewest = next((splits for splits in range(1, steps) if layout(splits).stages >= 2), steps)
    return layout(row_splits_for(tokens, -(-rows // (16 * tiles.bands)), steps, processors, fewest))


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
