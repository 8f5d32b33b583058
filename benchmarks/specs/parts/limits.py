"""What moving bytes or multiplying takes at least: limits for work that reads much, or computes much."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import transformers

from hayless.decode.program import Program, plan
from hayless.study.bench.spec import Bound
from hayless.study.bench.timing import DeviceClock

_COPIED = 2**30
_SIDE = 8192


@cache
def copy_rate() -> float:
    """Bytes a second of a device copy of 4 GiB, read and written both counted: the median of 20, by events."""
    source = torch.randn(_COPIED, device="cuda")
    target, stopwatch = torch.empty_like(source), DeviceClock()
    seconds = [stopwatch(lambda: target.copy_(source)) for _ in range(25)][5:]
    return 2 * source.nbytes / float(np.median(seconds))


def moving(size: float) -> Bound:
    """`size` bytes at the rate of a device copy."""
    rate = copy_rate()
    return Bound(size / rate, f"{size / 1e9:.3g} GB at the {rate / 1e12:.3g} TB/s of a device copy")


@cache
def product_rate() -> float:
    """FLOPs a second of PyTorch's product of two random bf16 matrices of 8192 × 8192: the median of 20, by events."""
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out, stopwatch = torch.empty_like(a), DeviceClock()
    seconds = [stopwatch(lambda: torch.mm(a, b, out=out)) for _ in range(25)][5:]
    return 2.0 * _SIDE**3 / float(np.median(seconds))


def multiplying(flops: float) -> Bound:
    """`flops` FLOPs at the rate of a large product."""
    rate = product_rate()
    return Bound(flops / rate, f"{flops / 1e12:.3g} TFLOPs at the {rate / 1e12:.3g} TFLOP/s of a large bf16 product")


def reading_weights(model: transformers.PreTrainedModel, rows: int, context: float) -> Bound:
    """A step of decoding: every weight once (of the embedding only its rows), and the cache of `rows` contexts."""
    program = plan(model)
    assert isinstance(program, Program), program.reason
    return moving(program.weight_bytes + rows * context * program.token_bytes)
