"""Cross-entropy of each row of logits, with its gradient written over the logits; one program a row.

The logits of a long vocabulary are read twice and written once, and no other tensor of their size is made: softmax by
a running maximum and sum (Milakov and Gimelshein, 2018, arXiv:1805.02867), then softmax − one-hot in place.
Shapes: c rows, v entries of the vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

IGNORED = -100
"""The target of a row that counts nothing."""
_BLOCK = 8192


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr):
    """softcap · tanh(x / softcap)."""
    if CAPPED:
        x = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * x / softcap)))
    return x


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
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * entries
    at = tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row)
    counts = target != IGNORE
    # Read before the reductions below, where all warps wait for each other: later, one may have written over it.
    mine = _capped(tl.load(base + target, mask=counts, other=0.0).to(tl.float32), softcap, CAPPED)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        there = start + at < entries
        x = _capped(tl.load(base + start + at, mask=there, other=0.0).to(tl.float32), softcap, CAPPED)
        x = tl.where(there, x, float("-inf"))
        higher = x > best
        new = tl.where(higher, x, best)
        # Where nothing was seen yet, exp(-inf - -inf) would be NaN.
        kept = tl.where(best == float("-inf"), total, total * tl.exp(best - new))
        total = kept + tl.where(x == float("-inf"), 0.0, tl.exp(x - new))
        where = tl.where(higher, start + at, where)
        best = new
    top = tl.max(best, 0)
    likeliest = tl.min(tl.where(best == top, where, entries), 0)
    sums = tl.sum(tl.where(best == float("-inf"), total, total * tl.exp(best - top)), 0)
    log_sum = top + tl.log(sums)
    tl.store(losses_ptr + row, tl.where(counts, log_sum - mine, 0.0))
    tl.store(right_ptr + row, (likeliest == target).to(tl.int8))
    if GRADIENT:
        for start in range(0, entries, BLOCK):
            there = start + at < entries
            x = _capped(tl.load(base + start + at, mask=there, other=0.0).to(tl.float32), softcap, CAPPED)
            slope = tl.exp(x - log_sum) - tl.where(start + at == target, 1.0, 0.0)
            if CAPPED:
                slope = slope * (1.0 - (x / softcap) * (x / softcap))
            slope = tl.where(counts, slope, 0.0)
            tl.store(base + start + at, slope.to(logits_ptr.dtype.element_ty), mask=there)


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
            BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
        )
    return losses, right
