"""Quantize and pack: integers by the range of each group, tables (nf4, fp4) by the nearest value.

Kernels and references round alike, to the same bits as the methods `uniform` and `nf4`: in float32, divisions rounded
to nearest, halves to even.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hayless.core.errors import bad_value
from hayless.kernels.packed.bits import pack_rows
from hayless.kernels.packed.formats import Integers, Table

_TILE = 2048


@triton.jit
def _rounded(v):
    """To the nearest integer, halves to the even one; |v| < 2^22."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def _bytes(codes, GROUPS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr, TURN: tl.constexpr):
    """Codes (GROUPS, COLUMNS) int32 as bytes (GROUPS, COLUMNS · BITS / 8)."""
    place = tl.arange(0, 8 // BITS) ^ TURN
    moved = tl.reshape(codes, (GROUPS, COLUMNS * BITS // 8, 8 // BITS)) << (place * BITS)[None, None, :]
    return tl.sum(moved, 2).to(tl.uint8)


@triton.jit
def _integers(
    weight_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    all_groups,
    group,
    eps,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    TWOS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    there = at < all_groups
    column = tl.arange(0, COLUMNS)
    lows = tl.zeros((GROUPS, COLUMNS), tl.float32)
    highs = lows
    for start in range(0, group, COLUMNS):
        mask = there[:, None] & (start + column < group)[None, :]
        w = tl.load(weight_ptr + at[:, None] * group + start + column[None, :], mask=mask, other=0.0).to(tl.float32)
        lows = tl.minimum(lows, w)
        highs = tl.maximum(highs, w)
    low = tl.min(lows, 1)
    high = tl.max(highs, 1)
    STEPS: tl.constexpr = (1 << BITS) - 1
    HALF: tl.constexpr = 1 << (BITS - 1)
    if ZERO:
        span = high - low
    else:
        span = 2 * tl.maximum(-low, high)
    kept = tl.div_rn(span, 1.0 * STEPS).to(scale_ptr.dtype.element_ty)
    scale = kept.to(tl.float32)
    scale = tl.where(scale == 0, eps, scale)
    tl.store(scale_ptr + at, scale.to(scale_ptr.dtype.element_ty), mask=there)
    shift = tl.zeros((GROUPS,), tl.float32)
    if ZERO:
        zero = _rounded(tl.minimum(tl.maximum(tl.div_rn(-low, scale), 0.0), 1.0 * STEPS))
        tl.store(zero_ptr + at, zero.to(tl.int32).to(tl.uint8), mask=there)
        shift = zero - HALF
    byte = tl.arange(0, COLUMNS * BITS // 8)
    a_group = group * BITS // 8
    for start in range(0, group, COLUMNS):
        mask = there[:, None] & (start + column < group)[None, :]
        w = tl.load(weight_ptr + at[:, None] * group + start + column[None, :], mask=mask, other=0.0).to(tl.float32)
        # Codes around 0 are clamped before they are rounded, which gives the same.
        signed = tl.div_rn(w, scale[:, None]) + shift[:, None]
        code = _rounded(tl.minimum(tl.maximum(signed, -1.0 * HALF), HALF - 1.0)).to(tl.int32) + HALF
        if TWOS:
            code ^= HALF
        first = start * BITS // 8
        mask = there[:, None] & (first + byte < a_group)[None, :]
        out = _bytes(code, GROUPS, COLUMNS, BITS, 0)
        tl.store(codes_ptr + at[:, None] * a_group + first + byte[None, :], out, mask=mask)


def quantize_integers(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    twos_complement: bool = False,
    scale_dtype: torch.dtype | None = None,
) -> Integers:
    """`weight` (out, in) as integers of 2, 4 or 8 bits with a scale for each `group_size` columns.

    Symmetric: scale = 2 max |w| / (2^bits − 1), code = round(w / scale) from −2^(bits−1) to 2^(bits−1) − 1, kept with
    2^(bits−1) added. Else the range, with 0 in it, is parted into 2^bits − 1 steps, and zero = round(−min / scale). The
    scale is rounded to `scale_dtype` (the weight's where None) before codes are made with it. RequestError where groups
    do not divide `in` or do not fill whole bytes.
    """
    _check_groups(weight, bits, group_size)
    dtype = scale_dtype or weight.dtype
    scale = torch.empty(weight.shape[0], weight.shape[1] // group_size, dtype=dtype, device=weight.device)
    zero = None if symmetric else torch.empty_like(scale, dtype=torch.uint8)
    codes = torch.empty(weight.shape[0], weight.shape[1] * bits // 8, dtype=torch.uint8, device=weight.device)
    columns = min(_TILE, max(8 // bits, triton.next_power_of_2(group_size)))
    groups = _TILE // columns
    _integers[(triton.cdiv(scale.numel(), groups),)](
        weight.contiguous(), codes, scale, scale if zero is None else zero,
        scale.numel(), group_size, torch.finfo(dtype).eps,
        BITS=bits, ZERO=not symmetric, TWOS=twos_complement, GROUPS=groups, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return Integers(codes, scale, bits, zero, twos_complement)


def quantize_integers_reference(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    twos_complement: bool = False,
    scale_dtype: torch.dtype | None = None,
) -> Integers:
    """The same in plain PyTorch."""
    _check_groups(weight, bits, group_size)
    steps, half, dtype = 2**bits - 1, 2 ** (bits - 1), scale_dtype or weight.dtype
    w = weight.float().unflatten(1, (-1, group_size))
    low, high = w.amin(2).clamp(max=0), w.amax(2).clamp(min=0)
    span = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = (span / steps).to(dtype).float()
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
    zero = torch.full_like(scale, half) if symmetric else (-low / scale).clamp(0, steps).round()
    signed = (w / scale[..., None] + (zero - half)[..., None]).round().clamp(-half, half - 1)
    codes = (signed + half).to(torch.uint8).flatten(1)
    if twos_complement:
        codes ^= half
    return Integers(
        pack_rows(codes, bits), scale.to(dtype), bits, None if symmetric else zero.to(torch.uint8), twos_complement
    )


@triton.jit
def _table(
    weight_ptr,
    between_ptr,
    order_ptr,
    codes_ptr,
    absmax_ptr,
    blocks,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    there = at < blocks
    column = tl.arange(0, COLUMNS)
    mask = there[:, None] & (column < BLOCK)[None, :]
    w = tl.load(weight_ptr + at[:, None] * BLOCK + column[None, :], mask=mask, other=0.0).to(tl.float32)
    absmax = tl.max(tl.abs(w), 1)
    tl.store(absmax_ptr + at, absmax, mask=there)
    inverse = tl.div_rn(1.0, tl.maximum(absmax, tl.full((GROUPS,), 1e-38, tl.float32)))
    v = w * inverse[:, None]
    rank = tl.zeros((GROUPS, COLUMNS), tl.int32)
    for i in tl.static_range(15):
        rank += (v > tl.load(between_ptr + i)).to(tl.int32)
    code = tl.load(order_ptr + rank)
    byte = tl.arange(0, COLUMNS // 2)
    mask = there[:, None] & (byte < BLOCK // 2)[None, :]
    out = _bytes(code, GROUPS, COLUMNS, 4, 1)
    tl.store(codes_ptr + at[:, None] * (BLOCK // 2) + byte[None, :], out, mask=mask)


def quantize_table(weight: Tensor, table: Tensor, block_size: int = 64) -> Table:
    """`weight` (out, in) by blocks of its flattened form: the largest magnitude, and for each element times its inverse
    the nearest of the 16 values of `table` (float32), of two equally near the lower: what is above the middle of two.

    RequestError where `block_size` is no multiple of 32 or does not divide `in`.
    """
    _check_blocks(weight, block_size)
    blocks = weight.numel() // block_size
    absmax = torch.empty(blocks, dtype=torch.float32, device=weight.device)
    codes = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8, device=weight.device)
    columns = triton.next_power_of_2(block_size)
    groups = max(1, _TILE // columns)
    between, order = _rising(table)
    _table[(triton.cdiv(blocks, groups),)](
        weight.contiguous(), between, order.int(), codes, absmax, blocks,
        BLOCK=block_size, GROUPS=groups, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return Table(codes, absmax, table, (weight.shape[0], weight.shape[1]), block_size)


def quantize_table_reference(weight: Tensor, table: Tensor, block_size: int = 64) -> Table:
    """The same in plain PyTorch."""
    _check_blocks(weight, block_size)
    w = weight.float().reshape(-1, block_size)
    absmax = w.abs().amax(1)
    between, order = _rising(table)
    code = order[torch.bucketize(w * (1 / absmax.clamp(min=1e-38))[:, None], between)]
    pairs = code.view(-1, 2).to(torch.uint8)
    shape = (weight.shape[0], weight.shape[1])
    return Table(pairs[:, :1] << 4 | pairs[:, 1:], absmax, table, shape, block_size)


def _rising(table: Tensor) -> tuple[Tensor, Tensor]:
    """What lies between neighbouring values of a table (15,), and the codes of its values from the lowest on (16,)."""
    rising, order = table.sort(stable=True)
    return (rising[:-1] + rising[1:]) / 2, order


def _check_groups(weight: Tensor, bits: int, group_size: int) -> None:
    if bits not in (2, 4, 8):
        raise bad_value("bits", bits, allowed="2, 4 or 8")
    if group_size < 1 or weight.shape[1] % group_size or group_size * bits % 8:
        allowed = f"divisors of {weight.shape[1]} whose codes of {bits} bits fill whole bytes"
        raise bad_value("group_size", group_size, allowed=allowed)


def _check_blocks(weight: Tensor, block_size: int) -> None:
    if block_size < 32 or block_size % 32 or weight.shape[1] % block_size:
        raise bad_value("block_size", block_size, allowed=f"multiples of 32 that divide {weight.shape[1]}")
