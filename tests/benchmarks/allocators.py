"""A spec for the tests of fresh processes: contenders that hold little and much memory."""

from __future__ import annotations

import torch

from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Prepared, Spec, Work

LITTLE, MUCH = 8 * 2**20, 192 * 2**20


def holding(size: int) -> Prepared:
    """Each repeat holds `size` bytes for its duration."""
    return Prepared(lambda: torch.ones(size, dtype=torch.uint8).max(), lambda: {"answer": [1.0]})


SPEC = Spec(
    name="allocators",
    turns="alone",
    works=[
        Work(
            "holding memory",
            [
                Contender("little", lambda: holding(LITTLE)),
                Contender("much", lambda: holding(MUCH)),
            ],
            same=close(),
            piece="call",
            repeats=2,
            warmup=1,
            rehearse=lambda: holding(LITTLE).run(),
        )
    ],
)
