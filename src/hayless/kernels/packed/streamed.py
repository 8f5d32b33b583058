"""y = Wx for one token and 4 or 8 bits a weight, in CUDA C++ (streamed.cu), with W always on its way.

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

from hayless.kernels.compiled import Argument, compiled, launch, why_not
from hayless.kernels.linear import Norm
from hayless.kernels.packed import codes
from hayless.kernels.packed.formats import Integers, Packed, Palette, Product, Table

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("codes.cu", "streamed.cu"))
_SHARED = 200 * 1024
"""Bytes of shared memory of a block. Two blocks of half, one of the next product, made a model's step slower."""
_MOST_STAGES = 16


@dataclass(frozen=True, slots=True)
class Stream:
    """Times 16 rows that a block multiplies at once, its warps, and the bytes of shared memory that it may take."""

    bands: int
    warps: int
    shared: int = _SHARED


_FEW = Stream(1, 16)
_MANY, _MANY_OF_TABLES = Stream(4, 8), Stream(2, 8)
"""By whether processors have as many times 64 rows; as an H200 has them fastest, or nearly."""
CANDIDATES = [Stream(bands, warps) for bands in (1, 2, 4) for warps in (8, 16)]


def unsupported(x: Tensor, weight: Packed) -> str:
    """Why the kernel cannot multiply x (tokens, in) and `weight`, in words; empty where it can."""
    if not x.is_cuda or torch.version.cuda is None or torch.cuda.get_device_capability(x.device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if x.shape[0] != 1:
        return f"it takes one token, not {x.shape[0]}"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it multiplies in fp16 and bf16, not {x.dtype}"
    if isinstance(weight, Palette) or codes.bits(weight) not in (4, 8):
        return "it reads integers of 4 and 8 bits and tables of sixteen values"
    if isinstance(weight, Integers) and weight.zero is not None:
        return "it has no zero points"
    width, group = weight.shape[1], codes.group(weight)
    span = _span(weight)
    if width % span or (group % span and group not in (span // 2, span // 4)):
        return f"it does not read groups of {group} of {width} columns"
    scale = codes.scale(weight)
    if weight.groups > 1 and weight.groups * scale.element_size() % _scale_bytes(weight):
        return f"{weight.groups} scales a row are not read side by side"
    if any(tensor.data_ptr() % 16 for tensor in (x, weight.codes, scale)):
        return "x, codes and scales must start at multiples of 16 bytes"
    if min(_stages(weight, way) for way in (_FEW, _MANY_OF_TABLES if isinstance(weight, Table) else _MANY)) < 2:
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
    way: Stream | None = None,
) -> None:
    """Write x Wᵀ + bias of every product, whose weights have one form (`multiply_each`), of x or of RMSNorm(x).

    `gated`: of two products silu(first) · second is written, to the `out` of the first. With `add` it comes on top of
    what is there. With `overlap` weights are read while the kernel before, which must not write them, still runs
    (sm_90).
    """
    weight, each = products[0].weight, 8 if gated else 16
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    way = way or _way_for(sum(one.weight.shape[0] for one in products), weight, processors)
    defined = definitions(x, weight, way) | {"MATRICES": len(products), "NORM": int(norm is not None)}
    defined |= {"GATED": int(gated), "OVERLAP": int(overlap)}
    kernel = compiled(_SOURCES, "packed_stream", defined, x.device.index)
    matrices, tiles = codes.matrices(products, each * way.bands, gated=gated)
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    args: list[Argument] = [ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(gain.data_ptr()), ctypes.c_float(eps)]
    args.append(matrices)
    args += [ctypes.c_int(number) for number in (tiles, weight.shape[1], weight.groups, int(add))]
    shared = _fixed(weight, way) + defined["STAGES"] * way.warps * _stage(weight, way)
    launch(kernel, (min(tiles, processors), 1, 1), (32 * way.warps, 1, 1), args, shared, overlap=overlap)


def _way_for(rows: int, weight: Integers | Table, processors: int) -> Stream:
    """For so many rows, of all matrices."""
    if rows < 64 * processors:
        return _FEW
    return _MANY_OF_TABLES if isinstance(weight, Table) else _MANY


def definitions(x: Tensor, weight: Integers | Table, way: Stream) -> dict[str, int]:
    """What the source is compiled for, whatever the products."""
    return codes.form(x, weight) | {
        "MIX": _mix(weight),
        "BANDS": way.bands,
        "WARPS": way.warps,
        "STAGES": _stages(weight, way),
        "SCALES": _scale_bytes(weight),
    }


def _span(weight: Integers | Table) -> int:
    """Columns of a row that its four lanes hold, 16 bytes each."""
    return 512 // codes.bits(weight)


def _mix(weight: Integers | Table) -> int:
    return max(1, _span(weight) // codes.group(weight))


def _scale_bytes(weight: Integers | Table) -> int:
    """That are copied of a row's scales with a part: of one that is smaller, as much as is copied at once."""
    return max(4, _mix(weight) * codes.scale(weight).element_size()) if weight.groups > 1 else 0


def _stage(weight: Integers | Table, way: Stream) -> int:
    return way.bands * (1024 + 16 * _scale_bytes(weight))


def _fixed(weight: Integers | Table, way: Stream) -> int:
    """Bytes of shared memory beside the rings: table, x, its units, and the warps' sums."""
    width, table = weight.shape[1], isinstance(weight, Table)
    units = 0 if table else width * _mix(weight) // _span(weight)
    return table * codes.TABLE_BYTES + 2 * width + 8 * units + 2 * 4 * way.warps * 16 * way.bands


def _stages(weight: Integers | Table, way: Stream) -> int:
    room = (way.shared - 4096 - _fixed(weight, way)) // (way.warps * _stage(weight, way))
    return min(_MOST_STAGES, room)
