"""The likeliest token of each row, or a given one, and its log-probability, in one pass over the logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hayless.kernels.linear import overlapping

_BLOCK = 4096


@triton.jit
def _likeliest(
    logits_ptr,
    tokens_ptr,
    logprobs_ptr,
    entries,
    stride,
    BLOCK: tl.constexpr,
    GIVEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    base = logits_ptr + row.to(tl.int64) * entries
    at = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        x = tl.load(base + start + at, mask=start + at < entries, other=float("-inf")).to(tl.float32)
        higher = x > best
        new = tl.where(higher, x, best)
        # Where nothing finite was seen yet, exp(-inf - -inf) would be NaN.
        kept = tl.where(best == float("-inf"), total, total * tl.exp(best - new))
        total = kept + tl.where(x == float("-inf"), 0.0, tl.exp(x - new))
        where = tl.where(higher, start + at, where)
        best = new
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, where, entries - 1), 0)
    sums = tl.sum(tl.where(best == float("-inf"), total, total * tl.exp(best - top)), 0)
    if GIVEN:
        chosen = tl.load(base + tl.load(tokens_ptr + row * stride)).to(tl.float32)
        tl.store(logprobs_ptr + row, chosen - top - tl.log(sums))
    else:
        tl.store(tokens_ptr + row * stride, token.to(tl.int64))
        tl.store(logprobs_ptr + row, -tl.log(sums))


def likeliest(logits: Tensor, tokens: Tensor, logprobs: Tensor, *, overlap: bool = False) -> None:
    """Write the argmax of logits (rows, entries), the first of equals, to `tokens` (rows,) int64, and its
    log-probability to `logprobs` (rows,) float32: NaN where the row holds a NaN. `tokens` may be strided.
    """
    _launch(logits, tokens, logprobs, given=False, overlap=overlap)


def logprobs_of(logits: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
    """Write the log-probabilities of `tokens` (rows,) int64 to `logprobs` (rows,) float32: where they are the
    likeliest, to the bit what `likeliest` writes. NaN where the row holds a NaN.
    """
    _launch(logits, tokens, logprobs, given=True, overlap=False)


def _launch(logits: Tensor, tokens: Tensor, logprobs: Tensor, *, given: bool, overlap: bool) -> None:
    rows, entries = logits.shape
    _likeliest[(rows,)](
        logits,
        tokens,
        logprobs,
        entries,
        tokens.stride(0),
        BLOCK=min(_BLOCK, triton.next_power_of_2(entries)),
        GIVEN=given,
        OVERLAP=overlap,
        num_warps=8,
        **overlapping(overlap),
    )


def likeliest_reference(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch: tokens and log-probabilities."""
    tokens = logits.argmax(-1)
    return tokens, torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None]).squeeze(1)
