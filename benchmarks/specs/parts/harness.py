"""The harness itself as a work: what it adds to a time, and that a contender is as fast as itself."""

from __future__ import annotations

from functools import partial

import torch

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import TIME, Contender, Prepared, Work

# 1% of a kernel of 1 ms.
_LEAST = {TIME: Goal(op="<=", value=0.01)}


def works(device: str, width: int, dtype: torch.dtype) -> list[Work]:
    """An empty function, and twice the same product of `width` × `width` matrices, of about 1 ms."""
    product = partial(_product, device, width, dtype)
    return [
        Work(
            f"an empty function, timed on {device}: what the harness adds",
            [Contender("nothing", _nothing, goals=_LEAST)],
            same=close(),
            piece="call",
            repeats=1000,
            peaks=False,
        ),
        Work(
            f"a product of {width} × {width} matrices on {device}, twice: identical contenders",
            [Contender("product", product), Contender("the same again", product)],
            same=close(),
            piece="call",
            repeats=300,
            peaks=False,
        ),
    ]


def _nothing() -> Prepared:
    return Prepared(lambda: None, lambda: {"answer": [0.0]})


def _product(device: str, width: int, dtype: torch.dtype) -> Prepared:
    x = torch.randn(width, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return Prepared(lambda: x @ x, lambda: {"product": x @ x})
