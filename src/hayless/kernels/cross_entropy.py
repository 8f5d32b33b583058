"""Cross-entropy of each row of logits, with its gradient written over the logits, one program a row; and what becomes
of gradients that were made before the number to multiply them by was known.

The logits of a long vocabulary are read twice and written once, and no other tensor of their size is made: softmax by
a running maximum and sum (Milakov and Gimelshein, 2018, arXiv:1805.02867), then softmax − one-hot in place. Running
figures are kept for every eight entries, which a thread reads at once. Rows that count nothing are not read.
Shapes: c rows, v entries of the vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

IGNORED = -100
"""The target of a row that counts nothing."""
_BLOCK, _WARPS = 8192, 16
"""Entries that a program reads at once, and its warps."""
_SCALED = 4096
"""Numbers that a program multiplies by another."""
_LEAST = -3e38
"""Below every logit, and finite: the difference of two is a number."""


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr):
    """softcap · tanh(x / softcap)."""
    if CAPPED:
        x = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * x / softcap)))
    return x


@triton.jit
def _slope(x, log_sum, softcap, hot: tl.constexpr, CAPPED: tl.constexpr):
    """softmax − `hot`, by the logit before it was capped."""
    slope = tl.exp(x - log_sum) - hot
    if CAPPED:
        slope = slope * (1.0 - (x / softcap) * (x / softcap))
    return slope


@triton.jit
def _cross_entropy(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    right_ptr,
    entries,
    softcap,
    IGNORE: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * entries
    lane = tl.arange(0, BLOCK // WIDTH) * WIDTH
    inner = tl.arange(0, WIDTH)
    at = lane[:, None] + inner[None, :]
    kind = logits_ptr.dtype.element_ty
    target = tl.load(targets_ptr + row)
    if target == IGNORE:
        tl.store(losses_ptr + row, 0.0)
        tl.store(right_ptr + row, tl.cast(0, tl.int8))
        if GRADIENT:
            for start in range(0, entries, BLOCK):
                tl.store(base + start + at, tl.zeros((BLOCK // WIDTH, WIDTH), kind), mask=start + at < entries)
    else:
        mine = _capped(tl.load(base + target).to(tl.float32), softcap, CAPPED)
        best = tl.full((BLOCK // WIDTH,), LEAST, tl.float32)
        total = tl.zeros((BLOCK // WIDTH,), tl.float32)
        where = tl.zeros((BLOCK // WIDTH,), tl.int32)
        for start in range(0, entries, BLOCK):
            there = start + at < entries
            x = tl.load(base + start + at, mask=there, other=float("-inf")).to(tl.float32)
            if CAPPED:
                x = tl.where(there, _capped(x, softcap, CAPPED), float("-inf"))
            most = tl.max(x, 1)
            where = tl.where(most > best, start, where)
            new = tl.maximum(best, most)
            total = total * tl.exp(best - new) + tl.sum(tl.exp(x - new[:, None]), 1)
            best = new
        top = tl.max(best, 0)
        log_sum = top + tl.log(tl.sum(total * tl.exp(best - top), 0))
        # The likeliest entry, the first of equals, is in the first of the eights with the maximum.
        first = tl.min(tl.where(best == top, where + lane, entries), 0) + inner
        eight = tl.load(base + first, mask=first < entries, other=float("-inf")).to(tl.float32)
        if CAPPED:
            eight = tl.where(first < entries, _capped(eight, softcap, CAPPED), float("-inf"))
        likeliest = tl.min(tl.where(eight == tl.max(eight, 0), first, entries), 0)
        tl.store(losses_ptr + row, log_sum - mine)
        tl.store(right_ptr + row, (likeliest == target).to(tl.int8))
        if GRADIENT:
            tl.debug_barrier()  # whatever was read above
            for start in range(0, entries, BLOCK):
                there = start + at < entries
                x = _capped(tl.load(base + start + at, mask=there, other=0.0).to(tl.float32), softcap, CAPPED)
                tl.store(base + start + at, _slope(x, log_sum, softcap, 0.0, CAPPED).to(kind), mask=there)
            tl.debug_barrier()  # the target's was written too
            tl.store(base + target, _slope(mine, log_sum, softcap, 1.0, CAPPED).to(kind))


def cross_entropy(
    logits: Tensor, targets: Tensor, *, softcap: float | None = None, gradient: bool
) -> tuple[Tensor, Tensor]:
    """−log softmax(logits)[target] of each row, 0 where the target is −100, and whether the target is the likeliest
    entry (the first of equals): float32 (c,) and bool (c,).

    `logits` (c, v) is contiguous, in up to 32 bits, and holds the gradient of the sum afterwards if `gradient`.
    `softcap` caps logits first: softcap · tanh(logits / softcap).
    """
    rows, entries = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    right = torch.empty(rows, dtype=torch.bool, device=logits.device)
    width = min(8, triton.next_power_of_2(entries))
    block = min(_BLOCK, triton.next_power_of_2(entries))
    if rows:
        _cross_entropy[(rows,)](
            logits,
            targets,
            losses,
            right.view(torch.int8),
            entries,
            softcap or 1.0,
            IGNORE=IGNORED,
            CAPPED=softcap is not None,
            GRADIENT=gradient,
            LEAST=_LEAST,
            BLOCK=block,
            WIDTH=width,
            num_warps=max(1, min(_WARPS, block // 256)),
        )
    return losses, right


@triton.jit
def _scale(tensor_ptr, factor_ptr, elements, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < elements
    x = tl.load(tensor_ptr + at, mask=there, other=0.0).to(tl.float32) * tl.load(factor_ptr).to(tl.float32)
    tl.store(tensor_ptr + at, x.to(tensor_ptr.dtype.element_ty), mask=there)


def scale(tensor: Tensor, factor: Tensor) -> None:
    """Multiply a contiguous tensor, in up to 32 bits, in place by a scalar on its device, rounded once."""
    elements = tensor.numel()
    if elements:
        _scale[(triton.cdiv(elements, _SCALED),)](tensor, factor, elements, BLOCK=_SCALED, num_warps=8)
