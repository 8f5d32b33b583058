"""What kernels that keep weights on their way are told (ring.cu), and what of these fits into shared memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.kernels.compiled import Argument, most_shared
from hayless.kernels.packed import codes
from hayless.kernels.packed.formats import Integers, Table
from hayless.kernels.packed.tiles import RowTiles, StreamTiles

BEFORE = tuple(Path(__file__).with_name(name) for name in ("codes.cu", "tiles.cu"))
"""The sources before any that has tiles of rows; a ring's is behind these."""
SOURCES = (*BEFORE, Path(__file__).with_name("ring.cu"))
OF_SEVERAL = (*SOURCES, Path(__file__).with_name("several.cu"))
"""And before those of several tokens."""
_SHARED = 200 * 1024
"""Bytes of shared memory of a block."""
OTHER = 4 * 1024
"""Of these, for small arrays that the source has besides."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A block's shared memory: parts of a step, bytes of a row's scales that come with it, steps of each warp that are
    on their way, and bytes in all; and the parts of the columns, each of a block."""

    run: int
    scales: int
    stages: int
    shared: int
    splits: int = 1


def device(x: Tensor) -> tuple[int, int]:
    """Processors, and bytes of shared memory for a block."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count, min(_SHARED, most_shared(x.device.index))


def definitions(
    x: Tensor, weight: Integers | Table, tiles: StreamTiles | RowTiles, layout: Layout, more: dict[str, int]
) -> dict[str, int]:
    """What the source is compiled for, `more` last. NotSupported where the layout has no room for a step."""
    if layout.stages < 1:
        raise NotSupported(f"{tiles} leave no room in shared memory for weights on their way.")
    return codes.form(x, weight) | {
        "WIDTH": weight.shape[1],
        "BANDS": tiles.bands,
        "WARPS": tiles.warps,
        "RUN": layout.run,
        "STAGES": layout.stages,
        "SCALES": layout.scales,
        **more,
    }


def pointers(*tensors: Tensor) -> list[Argument]:
    """As arguments of a kernel."""
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def span(weight: Integers | Table) -> int:
    """Columns of a row that its four lanes hold, 16 bytes each: a part."""
    return 512 // codes.bits(weight)


def scale_bytes(weight: Integers | Table, run: int) -> int:
    """That are copied of a row's scales with so many parts: where they have fewer, as much as is copied at once."""
    scales = max(1, run * span(weight) // codes.group(weight))
    return max(4, scales * codes.scale(weight).element_size()) if weight.groups > 1 else 0


def step_bytes(tiles: StreamTiles | RowTiles, run: int, scales: int) -> int:
    """Of a step of all of a block's warps."""
    return tiles.warps * tiles.bands * (1024 * run + 16 * scales)
