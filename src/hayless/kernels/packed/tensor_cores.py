"""y = Wx for 1 to 64 tokens and 2, 4 or 8 bits a weight, in CUDA C++ (tensor_cores.cu): the second design.

Triton's product for one token is compiled to about five instructions a weight, and its matrix product needs x laid
out anew in shared memory. Here tensor cores multiply even for one token, at 2 instructions a weight for integers and
2.3 for tables (sm_90), and W comes from where it lies. PyTorch's NVRTC compiles the source when settings are first
used; no compiler needs to be installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.core.packing import FEW
from hayless.kernels.compiled import Argument, compiled, is_recent, launch, why_not
from hayless.kernels.linear import Norm
from hayless.kernels.packed import codes, streamed
from hayless.kernels.packed.formats import Integers, Packed, Palette, Product, Table
from hayless.kernels.packed.gemm import add_splits
from hayless.kernels.packed.tiles import CoreTiles, core_tiles_for

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("codes.cu", "tensor_cores.cu"))
_SHARED, _STATIC = 100 * 1024, 40 * 1024
"""Bytes of shared memory that a block may have, and what it has without asking, with room for small arrays."""
_TABLE_BYTES = 32 * 1024
_STAGED = 16
"""Tokens whose x is copied to shared memory."""
MOST = 3
"""Matrices of one launch."""


def unsupported(x: Tensor, weight: Packed) -> str:
    """Why the kernel cannot multiply x (tokens, in) and `weight`, in words; empty where it can."""
    if not x.is_cuda or torch.version.cuda is None or torch.cuda.get_device_capability(x.device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if isinstance(weight, Palette):
        return "it reads integers and tables of sixteen values"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it multiplies in fp16 and bf16, not {x.dtype}"
    if x.shape[0] > FEW:
        return f"it takes up to {FEW} tokens, not {x.shape[0]}"
    group, word = codes.group(weight), 128 // codes.bits(weight)
    if group % word:
        return f"groups of {group} columns are not whole times {word}, which the lanes of a row read"
    if max(weight.codes.numel(), 2 * x.numel()) >= 2**32:
        return "offsets of more than 32 bits would be needed"
    if x.data_ptr() % 16 or weight.codes.data_ptr() % 16:
        return "x and codes must start at multiples of 16 bytes"
    return why_not(x.device.index)


def multiply(
    x: Tensor,
    weight: Packed,
    bias: Tensor | None,
    out: Tensor,
    *,
    tiles: CoreTiles | None = None,
    add: bool = False,
    overlap: bool = False,
) -> Tensor:
    """Write x Wᵀ + bias to `out` (tokens, out) in x's dtype, fp16 or bf16; x contiguous, as are the rows of
    `out`. Returns `out`. With `add` it comes on top of what is there. A few tokens go through `streamed`, with its
    `overlap`, where that can and `tiles` are not given.

    With `tiles.splits` the parts are added by the blocks of a cluster; on devices before sm_90, which have none, they
    go through float32 (splits, tokens, out), taken from PyTorch's allocator.
    NotSupported where `unsupported` gives a reason.
    """
    reason = unsupported(x, weight)
    if reason or isinstance(weight, Palette):
        raise NotSupported(f"The kernel for tensor cores cannot do this: {reason}.")
    if tiles is None and _is_streamed(x, [weight]):
        streamed.stream(x, [Product(weight, bias, out)], add=add, overlap=overlap)
        return out
    tiles = tiles or _tiles_for(x, [weight])
    split = tiles.splits > 1 and not is_recent(x)
    if not split:
        _launch(x, [Product(weight, bias, out)], tiles, add=add)
        return out
    # Sums of several blocks that are no cluster go through memory.
    sums = torch.empty(tiles.splits, *out.shape, dtype=torch.float32, device=out.device)
    _launch(x, [Product(weight, None, sums)], tiles)
    if not add:
        return add_splits(sums, bias, out)
    return out.add_(add_splits(sums, bias, torch.empty_like(out)))


def in_one_launch(x: Tensor, weights: Sequence[Integers | Table], *, normed: bool = False) -> bool:
    """Whether `multiply_each` takes these weights for x; `normed`: with a norm, which fp16's range may not hold.

    Sixteen values must be the same ones, which a block has once.
    """
    if len(weights) > MOST or (normed and x.dtype is not torch.bfloat16) or any(unsupported(x, one) for one in weights):
        return False
    if len({one.table.data_ptr() for one in weights if isinstance(one, Table)}) > 1:
        return False
    tiles = _tiles_for(x, weights)
    forms = {tuple(definitions(x, weight, tiles).items()) for weight in weights}
    return len(forms) == 1 and (tiles.splits == 1 or is_recent(x))


def multiply_each(
    x: Tensor, products: Sequence[Product], *, norm: Norm | None = None, gated: bool = False, overlap: bool = False
) -> None:
    """Every product as by `multiply`, of x or of RMSNorm(x), in one launch; only what goes `in_one_launch`.

    `gated`: of two products silu(first) · second is written, to the `out` of the first.
    """
    if _is_streamed(x, [one.weight for one in products]):
        streamed.stream(x, products, norm=norm, gated=gated, overlap=overlap)
        return
    tiles = _tiles_for(x, [one.weight for one in products])
    if gated and tiles.bands % 2:
        tiles = replace(tiles, bands=2)
    _launch(x, products, tiles, norm=norm, gated=gated)


def _is_streamed(x: Tensor, weights: Sequence[Packed]) -> bool:
    return not any(streamed.unsupported(x, weight) for weight in weights)


def _launch(
    x: Tensor,
    products: Sequence[Product],
    tiles: CoreTiles,
    *,
    add: bool = False,
    norm: Norm | None = None,
    gated: bool = False,
) -> None:
    weight = products[0].weight
    more = {"CLUSTER": int(tiles.splits > 1 and is_recent(x)), "MATRICES": len(products)}
    more |= {"NORM": int(norm is not None), "GATED": int(gated)}
    defined = definitions(x, weight, tiles) | more
    kernel = compiled(_SOURCES, "packed_linear", defined, x.device.index)
    matrices, blocks = codes.matrices(products, 8 * tiles.bands if gated else 16 * tiles.bands, gated=gated)
    gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
    args: list[Argument] = [ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(gain.data_ptr()), ctypes.c_float(eps)]
    args.append(matrices)
    args += [ctypes.c_int(number) for number in (len(x), weight.shape[1], weight.groups, int(add))]
    shared = defined["SHARED"] if defined["DYNAMIC"] else 0
    launch(kernel, (blocks, tiles.splits, 1), (32 * tiles.warps, 1, 1), args, shared)


def _tiles_for(x: Tensor, weights: Sequence[Integers | Table]) -> CoreTiles:
    rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    return core_tiles_for(len(x), rows, width, codes.bits(weights[0]))


def definitions(x: Tensor, weight: Integers | Table, tiles: CoreTiles) -> dict[str, int]:
    """What the source is compiled for."""
    bits, group, scale = codes.bits(weight), codes.group(weight), codes.scale(weight)
    span, mix = _span(weight, tiles)
    step = tiles.run * 512 // bits
    at_once = step // group
    together = weight.groups > 1 and at_once > 1 and step % group == 0 and weight.groups % at_once == 0
    together = together and at_once * scale.element_size() in (2, 4, 8, 16) and at_once in (2, 4, 8)
    table, columns = isinstance(weight, Table), -(-x.shape[0] * mix // 8)
    # Of several tokens, whose rows are lines of their own, x costs as much as W where each lane reads it for itself.
    stage = 2 * step * columns * 8 // mix
    staged = 1 < x.shape[0] <= _STAGED and tiles.depth == 1
    sums = tiles.warps * 8 * columns * (16 * tiles.bands + 4) * 4
    shared = max(sums, table * _TABLE_BYTES + staged * tiles.warps * stage)
    return codes.form(x, weight) | {
        "SPAN": span,
        "MIX": mix,
        "BANDS": tiles.bands,
        "TILES": columns,
        "WARPS": tiles.warps,
        "DEPTH": tiles.depth,
        "RUN": tiles.run,
        "TOGETHER": int(together),
        "STAGED": int(staged),
        "STAGE": stage,
        "SHARED": shared,
        "DYNAMIC": int(shared > _STATIC),
        "SPLITS": tiles.splits,
    }


def _span(weight: Integers | Table, tiles: CoreTiles) -> tuple[int, int]:
    """Columns that the lanes of a row read side by side, and the groups that these are."""
    bits, width, group = codes.bits(weight), weight.shape[1], codes.group(weight)
    whole = 512 // bits
    mix = whole // group
    if tiles.mixed and mix in (2, 4) and whole % group == 0 and width % whole == 0:
        return whole, mix
    return next(span for span in (whole, whole // 2, whole // 4) if group % span == 0), 1


def fits(x: Tensor, weight: Integers | Table, tiles: CoreTiles) -> bool:
    """Whether what a block needs at once fits into its shared memory."""
    return definitions(x, weight, tiles)["SHARED"] <= _SHARED
