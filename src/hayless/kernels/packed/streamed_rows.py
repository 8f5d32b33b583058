"""y = Wx for 9 to 16 tokens, by warps that have rows of their own (streamed_rows.cu), and the sum of what parts of the
columns give (streamed_sums.cu).

Blocks that shared rows among their warps had all columns of x, for which shared memory has no room beside weights on
their way, and added up sums for each tile. Here a block has some columns and nothing to add up, and a second kernel
reads sums of parts, some megabytes that the second cache holds, while the weights of what follows are on their way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hayless.kernels.compiled import compiled, is_recent, launch
from hayless.kernels.linear import Norm
from hayless.kernels.packed import codes, ring
from hayless.kernels.packed.formats import Integers, Product, Table
from hayless.kernels.packed.tiles import ROWS, RowTiles, row_splits_for

_TOKENS = 16
_ROWS, _SUMS = (Path(__file__).with_name(name) for name in ("streamed_rows.cu", "streamed_sums.cu"))
_TABLE_BYTES = 32 * 1024
_SUM_WARPS = 4
"""Of a block that adds up, four rows of a token by each thread."""


def multiply(
    x: Tensor,
    products: Sequence[Product],
    *,
    norm: Norm | None,
    gated: bool,
    add: bool,
    overlap: bool,
    tiles: RowTiles | None,
) -> None:
    """As `streamed.stream`; sums of parts, (splits, 16, out) in float32, are taken from PyTorch's allocator."""
    weight, tokens, (processors, room) = products[0].weight, len(x), ring.device(x)
    chosen, overlap = tiles or ROWS, overlap and is_recent(x)
    found = layout(weight, sum(one.weight.shape[0] for one in products), tiles, processors, room)
    matrices, count = codes.matrices(products, (8 if gated else 16) * chosen.bands, gated=gated)
    more = {"MATRICES": len(products), "NORM": int(norm is not None), "GATED": int(gated), "OVERLAP": int(overlap)}
    more |= {"MIX": 2, "TILES": _TOKENS // 8, "SPLITS": found.splits}

    rows = 16 * chosen.bands * count
    sums = torch.empty(found.splits, _TOKENS, rows, dtype=torch.float32, device=x.device)
    squares = sums if norm is None else torch.empty(found.splits, _TOKENS, dtype=torch.float32, device=x.device)
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    defined = ring.definitions(x, weight, chosen, found, more)
    kernel = compiled((*ring.OF_SEVERAL, _ROWS), "packed_stream_rows", defined, x.device.index)
    args = [*ring.pointers(x, gain), matrices, ctypes.c_int(count), ctypes.c_int(tokens), *ring.pointers(sums, squares)]
    grid = (max(1, processors // found.splits) * found.splits, 1, 1)
    launch(kernel, grid, (32 * chosen.warps, 1, 1), args, found.shared, overlap=overlap)

    defined = codes.form(x, weight) | more | {"BANDS": chosen.bands, "WARPS": _SUM_WARPS}
    kernel = compiled((*ring.BEFORE, _SUMS), "packed_sums", defined, x.device.index)
    numbers = [ctypes.c_int(number) for number in (count, add, tokens)]
    args = [*ring.pointers(sums, squares), ctypes.c_float(eps), ctypes.c_int(x.shape[1]), matrices, *numbers]
    blocks = -(-tokens * rows // (8 if gated else 4) // (32 * _SUM_WARPS))
    launch(kernel, (blocks, 1, 1), (32 * _SUM_WARPS, 1, 1), args, overlap=overlap)


def layout(weight: Integers | Table, rows: int, tiles: RowTiles | None, processors: int, room: int) -> ring.Layout:
    """With the parts of the columns that take the least time for `rows` of all matrices, or more where x would leave no
    room for two steps; `tiles.splits`, where there are, go before."""
    chosen, span, scales = tiles or ROWS, ring.span(weight), ring.scale_bytes(weight, 1)
    steps, step = weight.shape[1] // span, ring.step_bytes(chosen, 1, scales)

    def cut(splits: int) -> ring.Layout:
        x = _TOKENS * (-(-steps // splits) * span * 2 + 16)
        fixed = isinstance(weight, Table) * _TABLE_BYTES + x
        stages = min(chosen.stages, (room - ring.OTHER - fixed) // step)
        return ring.Layout(1, scales, stages, fixed + stages * step, splits)

    if chosen.splits:
        return cut(chosen.splits)
    fewest = next((splits for splits in range(1, steps) if cut(splits).stages >= 2), steps)
    return cut(row_splits_for(-(-rows // (16 * chosen.bands)), steps, processors, fewest))
