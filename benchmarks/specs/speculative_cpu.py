"""Speculative sampling with the trained pair on one CPU thread, beside transformers' assisted generation.

`--input models=FOLDER` has the pair.
"""

from functools import partial

import torch
from parts.models import trained
from parts.speculation import Speculation, code, works

from hayless.study.bench.spec import Spec

_PAIR = Speculation(
    partial(trained, "target", torch.float32, "cpu"),
    partial(trained, "draft", torch.float32, "cpu"),
    partial(code, 64),
    tokens=96,
)

SPEC = Spec(
    name="speculative_cpu",
    threads=1,
    works=works(_PAIR, "trained pair (16M and 2.4M), fp32, batch 1, one thread", drafted=4, times=1.5, repeats=5),
)
