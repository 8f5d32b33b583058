"""Where tokens leave a model in captured steps: how sure it is, and who leaves.

`look` asks each row behind a layer how sure the model is and marks those that leave (CALM, Schuster et al., 2022,
arXiv:2207.07061, section 3.1); `hold` gives rows that have left their state back where others went on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hayless.kernels.linear import Norm, overlapping

Kind = Literal["softmax", "state", "classifier"]
_BLOCK = 4096


class Leaving:
    """What is known of the rows of a step while it goes through the layers."""

    def __init__(self, rows: int, exits: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.left_b = torch.zeros(rows, dtype=torch.int32, device=device)
        """1 where a row has left."""
        self.kept_bh = torch.zeros(rows, width, dtype=dtype, device=device)
        """States that rows left with."""
        self.shown_bh = torch.zeros(rows, width, dtype=dtype, device=device)
        """What the head is shown of them."""
        self.going_nb = torch.zeros(exits, rows, dtype=torch.int32, device=device)
        """1 where an active row went on behind an exit."""


@dataclass(frozen=True, slots=True)
class Line:
    """A classifier (confidence `classifier`): σ(weight·norm(x) + bias), weight (h,) and bias () in float32."""

    weight: Tensor
    bias: Tensor
    norm: Norm


@triton.jit
def _softmax_gap(logits_ptr, entries, BLOCK: tl.constexpr):
    """By how much the likeliest entry's probability is larger than the second's."""
    at = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    second = best
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        x = tl.load(logits_ptr + start + at, mask=start + at < entries, other=float("-inf")).to(tl.float32)
        new = tl.maximum(best, x)
        second = tl.maximum(second, tl.minimum(best, x))
        # Where nothing finite was seen yet, exp(-inf - -inf) would be NaN.
        kept = tl.where(best == float("-inf"), total, total * tl.exp(best - new))
        total = kept + tl.where(x == float("-inf"), 0.0, tl.exp(x - new))
        best = new
    top = tl.max(best, 0)
    where = tl.min(tl.where(best == top, at, BLOCK), 0)
    next_top = tl.max(tl.where(at == where, second, best), 0)
    sums = tl.sum(tl.where(best == float("-inf"), total, total * tl.exp(best - top)), 0)
    return (1.0 - tl.exp(next_top - top)) / sums


@triton.jit(do_not_specialize=["layer", "depth"])
def _look(
    x_ptr,
    shown_ptr,
    before_ptr,
    logits_ptr,
    gain_ptr,
    line_ptr,
    bias_ptr,
    active_ptr,
    layers_ptr,
    left_ptr,
    kept_ptr,
    kept_shown_ptr,
    going_ptr,
    threshold,
    layer,
    depth,
    width,
    entries,
    eps,
    KIND: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    at = row.to(tl.int64) * width + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    shown = tl.load(shown_ptr + at, mask=inside, other=0.0)
    if KIND == "softmax":
        sure = _softmax_gap(logits_ptr + row.to(tl.int64) * entries, entries, BLOCK)
    elif KIND == "state":
        wide, before = x.to(tl.float32), tl.load(before_ptr + at, mask=inside, other=0.0).to(tl.float32)
        lengths = tl.maximum(tl.sqrt(tl.sum(wide * wide, 0)), 1e-8) * tl.maximum(
            tl.sqrt(tl.sum(before * before, 0)), 1e-8
        )
        sure = tl.minimum(tl.maximum(tl.sum(wide * before, 0) / lengths, 0.0), 1.0)
    else:
        wide = shown.to(tl.float32)
        gained = wide * tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
        normed = gained / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
        line = tl.load(line_ptr + column, mask=inside, other=0.0)
        sure = tl.sum(normed.to(x_ptr.dtype.element_ty).to(tl.float32) * line, 0) + tl.load(bias_ptr)
        sure = 1.0 / (1.0 + tl.exp(-sure))
    leaves = sure >= threshold
    if FIRST:
        left = leaves.to(tl.int32)
        tl.store(layers_ptr + row, tl.where(leaves, layer, depth))
    else:
        before_left = tl.load(left_ptr + row)
        left = tl.maximum(before_left, leaves.to(tl.int32))
        tl.store(layers_ptr + row, layer, mask=left > before_left)
    tl.store(left_ptr + row, left)
    tl.store(kept_ptr + at, x, mask=inside)
    tl.store(kept_shown_ptr + at, shown, mask=inside)
    tl.store(going_ptr + row, tl.where(left == 0, tl.load(active_ptr + row), 0))


def look(
    kind: Kind,
    layer: int,
    exit: int,
    x: Tensor,
    shown: Tensor,
    leaving: Leaving,
    active: Tensor,
    layers: Tensor,
    threshold: float,
    *,
    depth: int,
    logits: Tensor | None = None,
    before: Tensor | None = None,
    line: Line | None = None,
    overlap: bool = False,
) -> None:
    """Let rows leave behind layer `layer`, the exit of number `exit`, where confidence is at least `threshold`.

    x and shown (rows, h): the states there and what the head is shown of them, where rows that left before are held
    back already; active (rows,) int32; layers (rows,) int32 gets `layer` where a row leaves, and `depth` at the first
    exit where it does not. softmax takes the head's `logits` (rows, v) of `shown`, state the states `before` the layer,
    classifier its `line`. The first exit takes no row for one that has left. All contiguous.
    """
    rows, width = x.shape
    given = x if line is None else line.weight
    _look[(rows,)](
        x,
        shown,
        x if before is None else before,
        x if logits is None else logits,
        x if line is None else line.norm.gain,
        given,
        given if line is None else line.bias,
        active,
        layers,
        leaving.left_b,
        leaving.kept_bh,
        leaving.shown_bh,
        leaving.going_nb[exit],
        threshold,
        layer,
        depth,
        width,
        0 if logits is None else logits.shape[1],
        0.0 if line is None else line.norm.eps,
        KIND=kind,
        FIRST=exit == 0,
        BLOCK=_BLOCK if logits is None else min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        WIDTH=triton.next_power_of_2(width),
        OVERLAP=overlap,
        num_warps=8 if kind == "softmax" else 4,
        **overlapping(overlap),
    )


@triton.jit
def _hold(x_ptr, kept_ptr, left_ptr, width, WIDTH: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    at = row.to(tl.int64) * width + column
    inside = column < tl.where(tl.load(left_ptr + row) != 0, width, 0)
    tl.store(x_ptr + at, tl.load(kept_ptr + at, mask=inside, other=0.0), mask=inside)


def hold(x: Tensor, kept: Tensor, left: Tensor, *, overlap: bool = False) -> None:
    """Give rows of x (rows, h) that have left what was kept of them (rows, h). Contiguous."""
    rows, width = x.shape
    padded = triton.next_power_of_2(width)
    _hold[(rows,)](x, kept, left, width, WIDTH=padded, OVERLAP=overlap, num_warps=4, **overlapping(overlap))
