"""The harness itself: what it adds to a time, and that a contender is as fast as itself."""

import torch

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import TIME, Contender, Prepared, Spec, Work

_WIDTH = 448


def _nothing() -> Prepared:
    return Prepared(lambda: None, lambda: {"answer": [0.0]})


def _product() -> Prepared:
    """A matrix product of about 1 ms on one thread."""
    x = torch.randn(_WIDTH, _WIDTH, generator=torch.Generator().manual_seed(0))
    return Prepared(lambda: x @ x, lambda: {"product": x @ x})


# 1% of a kernel of 1 ms.
_LEAST = {TIME: Goal(op="<=", value=0.01)}

SPEC = Spec(
    name="harness",
    threads=1,
    works=[
        Work(
            "an empty function, timed: what the harness adds",
            [Contender("nothing", _nothing, goals=_LEAST)],
            same=close(),
            piece="call",
            repeats=1000,
            peaks=False,
        ),
        Work(
            f"a product of {_WIDTH} × {_WIDTH} matrices, one thread, twice: identical contenders",
            [Contender("product", _product), Contender("the same again", _product)],
            same=close(),
            piece="call",
            repeats=300,
            peaks=False,
        ),
    ],
)
