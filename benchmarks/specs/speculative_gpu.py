"""Speculative sampling on one GPU: the trained pair, and shapes of 70B and 7B with acceptance imposed; two minutes.

`--input models=FOLDER` has the pair.
"""

from functools import partial

import torch
from parts.models import trained
from parts.speculation import LLAMA_70B, Speculation, code, coin, imposed, random, shape, works

from hayless.study.bench.spec import Spec, Work

_PAIR = Speculation(
    partial(trained, "target", torch.bfloat16, "cuda"),
    partial(trained, "draft", torch.bfloat16, "cuda"),
    partial(code, 64),
    tokens=96,
)


def _shapes(acceptance: float, drafted: int) -> Work:
    pair = Speculation(
        partial(shape, 10, **LLAMA_70B),
        partial(shape, 4),
        partial(random, 512, 32_000),
        tokens=96,
        rule=coin(acceptance),
        judged=False,
    )
    name = "10 layers of Llama-70B's shape and 4 of 7B's as the draft, random weights, bf16, batch 1, context 512"
    return imposed(pair, f"{name}, acceptance {acceptance} imposed by a coin", drafted)


SPEC = Spec(
    name="speculative_gpu",
    device="cuda",
    works=[
        *works(_PAIR, "trained pair (16M and 2.4M), bf16, batch 1", drafted=2, times=30, repeats=15),
        _shapes(0.6, 3),
        _shapes(0.8, 5),
        _shapes(0.9, 8),
    ],
)
