"""What speculative decoding does between its passes: look drafts up in the text, and move rows on by what was kept.

A row's text is on the device: `lengths` tokens in the cache and one behind them, the last, which the next pass reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_LENGTH: tl.constexpr = tl.constexpr(1 << 24)
"""A longer match wins over any later one, while texts are shorter than this."""


@triton.jit
def _lookup(
    text_ptr,
    lengths_ptr,
    tokens_ptr,
    capacity,
    stride,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    NGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    text_ptr += row.to(tl.int64) * capacity
    last = tl.load(lengths_ptr + row)
    best = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, last, BLOCK):
        end = start + tl.arange(0, BLOCK)
        same = end < last
        length = tl.zeros((BLOCK,), tl.int32)
        for back in tl.static_range(NGRAM):
            there = same & (end >= back)
            before = tl.load(text_ptr + end - back, mask=there, other=-1)
            same = there & (before == tl.load(text_ptr + tl.maximum(last - back, 0)))
            length += same.to(tl.int32)
        best = tl.maximum(best, tl.where(length > 0, length * _LENGTH + end, 0))
    found = tl.max(best, 0)
    # Without a match the last token is repeated, which any draft may be.
    at = tl.where(found > 0, found % _LENGTH, last - 1)
    place = tl.arange(0, PADDED)
    drafted = tl.load(text_ptr + at + 1 + place % (last - at), mask=place < COUNT, other=0)
    tl.store(tokens_ptr + row * stride + place, drafted, mask=place < COUNT)


def lookup(text: Tensor, lengths: Tensor, tokens: Tensor, ngram: int) -> None:
    """Write to `tokens` (rows, count) what followed the last tokens of each text where they stood before.

    text (rows, capacity) int64, contiguous; lengths (rows,) int32, the place of each text's last token; rows of
    `tokens` may be strided. The rule is that of `lookup` in methods/decoding/speculative/drafts.py, its reference; a
    text whose last token is new gets that token again.
    """
    rows, count = tokens.shape
    _lookup[(rows,)](
        text,
        lengths,
        tokens,
        text.shape[1],
        tokens.stride(0),
        COUNT=count,
        PADDED=triton.next_power_of_2(count),
        NGRAM=ngram,
        BLOCK=min(_BLOCK, triton.next_power_of_2(text.shape[1])),
        num_warps=4,
    )


@triton.jit
def _settle(
    tokens_ptr,
    chosen_ptr,
    kept_ptr,
    lengths_ptr,
    active_ptr,
    places_ptr,
    fed_ptr,
    text_ptr,
    capacity,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    LIKELIEST: tl.constexpr,
    TEXT: tl.constexpr,
):
    row = tl.program_id(0)
    place = tl.arange(0, PADDED)
    drafted = (place > 0) & (place <= COUNT)
    tokens_ptr += row * (COUNT + 1)
    chosen_ptr += row * (COUNT + 1)
    token = tl.load(tokens_ptr + place, mask=place <= COUNT, other=-1)
    if LIKELIEST:
        wanted = tl.load(chosen_ptr + place - 1, mask=drafted, other=-1)
        kept = tl.min(tl.where(drafted & (token != wanted), place - 1, COUNT), 0)
        tl.store(kept_ptr + row, kept)
    else:
        kept = tl.load(kept_ptr + row)
    active = tl.load(active_ptr + row)
    length = tl.load(lengths_ptr + row)
    last = tl.load(chosen_ptr + kept)
    previous = tl.sum(tl.where(place == kept, token, 0), 0)
    if TEXT:
        text_at = text_ptr + row.to(tl.int64) * capacity + length + 1 + place
        chosen = tl.load(chosen_ptr + place, mask=place <= kept, other=0)
        tl.store(text_at, chosen, mask=place < (kept + 1) * active)
    tl.debug_barrier()
    tl.store(tokens_ptr, last)
    tl.store(fed_ptr + 2 * row, previous)
    tl.store(fed_ptr + 2 * row + 1, last)
    tl.store(lengths_ptr + row, length + (kept + 1) * active)
    tl.store(places_ptr + row, tl.load(places_ptr + row) + (kept + 1) * active)


def settle(
    tokens: Tensor,
    chosen: Tensor,
    kept: Tensor,
    lengths: Tensor,
    active: Tensor,
    places: Tensor,
    fed: Tensor,
    text: Tensor | None,
    *,
    likeliest: bool,
) -> None:
    """Move each row on by the drafted tokens that it keeps and the one behind them.

    tokens (rows, k + 1) int64: the last token of the text and the drafted ones; chosen (rows, k + 1) int64: what the
    text gets, as far as it is kept. With `likeliest`, as many drafted tokens are kept as are the chosen ones, and
    written to `kept` (rows,) int32; otherwise that says how many. The new last token goes into tokens[:, 0], it and the
    one before it into fed (rows, 2), new tokens into text (rows, capacity) behind its last; lengths (rows,) int32 and
    places (rows,) int32 grow where active (rows,) int32 is 1. Contiguous.
    """
    rows, count = tokens.shape[0], tokens.shape[1] - 1
    _settle[(rows,)](
        tokens,
        chosen,
        kept,
        lengths,
        active,
        places,
        fed,
        tokens if text is None else text,
        0 if text is None else text.shape[1],
        COUNT=count,
        PADDED=triton.next_power_of_2(count + 1),
        LIKELIEST=likeliest,
        TEXT=text is not None,
        num_warps=1,
    )


def settle_reference(
    tokens: Tensor,
    chosen: Tensor,
    kept: Tensor,
    lengths: Tensor,
    active: Tensor,
    places: Tensor,
    fed: Tensor,
    text: Tensor | None,
    *,
    likeliest: bool,
) -> None:
    """The same in plain PyTorch, row by row."""
    for row in range(len(tokens)):
        if likeliest:
            same = (tokens[row, 1:] == chosen[row, :-1]).tolist()
            kept[row] = same.index(False) if False in same else len(same)
        count = int(kept[row])
        fed[row] = torch.stack([tokens[row, count], chosen[row, count]])
        tokens[row, 0] = chosen[row, count]
        if active[row]:
            if text is not None:
                text[row, int(lengths[row]) + 1 :][: count + 1] = chosen[row, : count + 1]
            lengths[row] += count + 1
            places[row] += count + 1
