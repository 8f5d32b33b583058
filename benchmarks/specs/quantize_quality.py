"""What weights of few bits cost a trained model of 16M parameters, in bits per byte of text that it never saw.

`--input models=FOLDER` has the model. Nothing is timed: on so small a model times say nothing.
"""

from parts.quantized import ADDED, BITS, WHOLE, contender, whole

from hayless.core.measurement import Goal
from hayless.core.registry import configure
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Spec, Work

_NEAREST = "uniform, 4 bits"
_CLOSE = Goal(op=">=", against=WHOLE, ratio=1 / 1.015)
_HALF = Goal(op=">=", against=_NEAREST, ratio=2)
_CALIBRATED = {BITS: _CLOSE, ADDED: _HALF}
_GROUP = {"group_size": 64}

SPEC = Spec(
    name="quantize_quality",
    threads=1,
    works=[
        Work(
            "trained target (16M), groups of 64, first 512 tokens of every third top-level module of Python's library",
            [
                whole(),
                contender(_NEAREST, configure("uniform", bits=4, **_GROUP)),
                contender("uniform, 4 bits, clipped", configure("uniform", bits=4, clip=True, **_GROUP)),
                contender("uniform, 3 bits", configure("uniform", bits=3, **_GROUP)),
                contender("uniform, 3 bits, clipped", configure("uniform", bits=3, clip=True, **_GROUP)),
                contender("uniform, 2 bits", configure("uniform", bits=2, **_GROUP)),
                contender("uniform, 2 bits, clipped", configure("uniform", bits=2, clip=True, **_GROUP)),
                contender("gptq, 4 bits", configure("gptq", bits=4, **_GROUP), _CALIBRATED),
                contender("gptq, 4 bits, not clipped", configure("gptq", bits=4, clip=False, **_GROUP), _CALIBRATED),
                contender("gptq, 3 bits", configure("gptq", bits=3, **_GROUP)),
                contender("gptq, 2 bits", configure("gptq", bits=2, **_GROUP)),
                contender("awq, 4 bits", configure("awq", bits=4, **_GROUP), _CALIBRATED),
            ],
            same=close(absolute=0),
            piece="model",
            repeats=1,
            warmup=0,
            peaks=False,
            timed=False,
        )
    ],
)
