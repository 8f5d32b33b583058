"""Branches of many adapters beside one matrix: each row of a batch gets those of its own adapter, or none.

out[n] += s·B(A x[n]) with A, B and s of the slot that row n names (Chen et al. 2023, Punica, arXiv:2310.18547; Sheng et
al. 2023, S-LoRA, arXiv:2311.03285). Slots lie on the device, so a captured graph serves whatever adapters rows have.
Shapes: b rows, n = b·s tokens, row by row, i in, o out, k slots, r the largest rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stack:
    """The branches of one matrix: A (k, r, i), B transposed (k, r, o), scale (k,) float32, rank (k,) int32, 0 for none.

    What lies behind a slot's rank is zero. Both are read along their last dimension, and of it no more than the rank.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    rank: Tensor


MOST = 3
"""Matrices of one input whose branches are added at once."""


def add_branches(outs: Sequence[Tensor], x: Tensor, stacks: Sequence[Stack], slots_b: Tensor) -> None:
    """outs[p] (…, o of p) += the branches of stacks[p] on x (…, i), 1 to 3 of them.

    slots_b (b,) int32 is each row's slot, or −1 for none. Tokens in two dimensions and one of each row, as steps have
    them, take kernels on a GPU; prompts and everything else plain PyTorch. Nothing waits for the device. ValueError for
    tokens that are not those of b rows.
    """
    if x.dim() == 3 and x.shape[1] == 1:
        x, outs = x.squeeze(1), [out.squeeze(1) for out in outs]
    if x.shape[0] != len(slots_b) if x.dim() > 2 else x.shape[0] % len(slots_b):
        raise ValueError(f"x: {tuple(x.shape)} is not {len(slots_b)} rows, each with its slot")
    if x.is_cuda and x.dim() == 2 and _triton():
        from hayless.kernels.adapter_kernels import add_by_slots

        add_by_slots(outs, x.contiguous(), stacks, slots_b)
        return
    for out, stack in zip(outs, stacks, strict=True):
        add_reference(out, x, stack, slots_b)


def add_reference(out: Tensor, x: Tensor, stack: Stack, slots_b: Tensor) -> None:
    """The same for one matrix in plain PyTorch: a product of each row with what its slot holds."""
    rows, nobody_b11 = len(slots_b), (slots_b < 0)[:, None, None]
    at_b = slots_b.clamp(min=0).long()
    # Filled, not multiplied by zero: another's adapter may hold what is not finite.
    a_bri, b_bro = (part[at_b].masked_fill_(nobody_b11, 0.0) for part in (stack.a, stack.b))
    inner_bsr = torch.bmm(x.reshape(rows, -1, x.shape[-1]), a_bri.mT) * stack.scale[at_b, None, None]
    out.view(rows, -1, out.shape[-1]).baddbmm_(inner_bsr.to(out.dtype), b_bro.to(out.dtype))


@cache
def _triton() -> bool:
    return find_spec("triton") is not None
