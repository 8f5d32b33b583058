"""What weights of few bits cost a trained model of 16M parameters, in bits per byte of text that it never saw.

`--input models=FOLDER` has the model. Nothing is timed: on so small a model times say nothing. The second work sets
methods beside other packages' at equal bits, on the same documents; the third and fourth have errors by layer, of
weights and of what they put out.
"""

from functools import partial

from parts import packers
from parts.quantized import ADDED, BITS, WHOLE, contender, layers, layers_of_outputs, less, peer, whole

from hayless.core.measurement import Goal
from hayless.core.registry import configure
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Spec, Work

_NEAREST = "uniform, 4 bits"
_CLOSE = Goal(op=">=", against=WHOLE, ratio=1 / 1.015)
_HALF = Goal(op=">=", against=_NEAREST, ratio=2)
_CALIBRATED = {BITS: _CLOSE, ADDED: _HALF}
_GROUP = {"group_size": 64}
_TEXT = "first 512 tokens of every third top-level module of Python's library"
_BNB, _AO = "bitsandbytes", "torchao"

_WITHOUT_TEXT = {
    "int8": configure("int8"),
    "int8, threshold 0": configure("int8", threshold=0),
    "fp8": configure("fp8"),
    "nf4": configure("nf4"),
    "nf4, scales whole": configure("nf4", double=False),
    "fp4": configure("nf4", type="fp4"),
    "fp4, scales whole": configure("nf4", type="fp4", double=False),
    "int4 values, blocks of 64": configure("nf4", type="int4", double=False),
    **{
        f"kmeans, {bits} bits, {words}": configure("kmeans", bits=bits, group_size=size)
        for bits in (4, 3, 2)
        for size, words in ((None, "a codebook a matrix"), (8, "8 rows a codebook"), (1, "a codebook a row"))
    },
    _NEAREST: configure("uniform", bits=4, **_GROUP),
    "uniform, 8 bits": configure("uniform", bits=8, **_GROUP),
    "uniform, 4 bits, with zeros": configure("uniform", bits=4, symmetric=False, **_GROUP),
    "uniform, 4 bits, clipped": configure("uniform", bits=4, clip=True, **_GROUP),
    "uniform, 3 bits": configure("uniform", bits=3, **_GROUP),
    "uniform, 3 bits, clipped": configure("uniform", bits=3, clip=True, **_GROUP),
    "uniform, 2 bits": configure("uniform", bits=2, **_GROUP),
    "uniform, 2 bits, clipped": configure("uniform", bits=2, clip=True, **_GROUP),
}

_PEERS = {
    "int8": (packers.int8(6.0), _BNB),
    "int8, threshold 0": (packers.dynamic_int8(), _AO),
    "nf4": (packers.blocks_of_four_bits("nf4", double=True), _BNB),
    "nf4, scales whole": (packers.blocks_of_four_bits("nf4", double=False), _BNB),
    "fp4": (packers.blocks_of_four_bits("fp4", double=True), _BNB),
    "fp4, scales whole": (packers.blocks_of_four_bits("fp4", double=False), _BNB),
    _NEAREST: (packers.integers(4, 64), _AO),
    "uniform, 4 bits, with zeros": (packers.integers(4, 64, symmetric=False), _AO),
    "uniform, 3 bits": (packers.integers(3, 64), _AO),
    "uniform, 2 bits": (packers.integers(2, 64), _AO),
}
"""Another package at equal bits."""

_CALIBRATED_BY = {
    "gptq, 4 bits": configure("gptq", bits=4, **_GROUP),
    "gptq, 4 bits, not clipped": configure("gptq", bits=4, clip=False, **_GROUP),
    "gptq, 3 bits": configure("gptq", bits=3, **_GROUP),
    "gptq, 2 bits": configure("gptq", bits=2, **_GROUP),
    "awq, 4 bits": configure("awq", bits=4, **_GROUP),
    "awq, 4 bits, as published": configure("awq", bits=4, scales="inputs", clip_attention=False, **_GROUP),
    "awq, 3 bits": configure("awq", bits=3, **_GROUP),
    "awq, 2 bits": configure("awq", bits=2, **_GROUP),
}


_work = partial(Work, same=close(absolute=0), piece="model", repeats=1, warmup=0, peaks=False, timed=False)


SPEC = Spec(
    name="quantize_quality",
    threads=1,
    works=[
        _work(
            f"trained target (16M), groups of 64, {_TEXT}",
            [
                whole(),
                *(contender(name, config) for name, config in _WITHOUT_TEXT.items()),
                *(
                    contender(name, config, _CALIBRATED if name.endswith("4 bits") else None)
                    for name, config in _CALIBRATED_BY.items()
                ),
                *(peer(f"{package}: {name}", pack, package) for name, (pack, package) in _PEERS.items()),
                # Not at equal work: hayless rounds inputs too.
                peer(f"{_AO}: fp8, weights alone", packers.float8(), _AO),
            ],
        ),
        _work(
            f"bits a byte that a method takes beyond another package's at equal bits, trained target (16M), {_TEXT}",
            [
                less(f"{name}, beyond {package}", _WITHOUT_TEXT[name], pack, package)
                for name, (pack, package) in _PEERS.items()
            ],
            compared=False,
        ),
        _work(
            "error of the trained target's (16M) weights by layer, of their root mean square",
            [layers(name, config) for name, config in _WITHOUT_TEXT.items()],
            compared=False,
        ),
        _work(
            "squared error of what the trained target's (16M) weights put out, as a share, by layer, calibration text",
            [layers_of_outputs(name, config) for name, config in _CALIBRATED_BY.items()],
            compared=False,
        ),
    ],
)
