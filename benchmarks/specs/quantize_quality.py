"""What weights of few bits cost a trained model of 16M parameters, in bits per byte of text that it never saw.

`--input models=FOLDER` has the model. Nothing is timed: on so small a model times say nothing. The second work sets
methods beside other packages' at equal bits, on the same documents.
"""

from functools import partial

from parts import packers
from parts.few_bits import BY_TEXT, NEAREST, WITHOUT_TEXT
from parts.quantized import ADDED, BITS, WHOLE, contender, less, peer, whole

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Spec, Work

_CLOSE = Goal(op=">=", against=WHOLE, ratio=1 / 1.015)
_HALF = Goal(op=">=", against=NEAREST, ratio=2)
_CALIBRATED = {BITS: _CLOSE, ADDED: _HALF}
_TEXT = "first 512 tokens of every third top-level module of Python's library"
_BNB, _AO = "bitsandbytes", "torchao"

_PEERS = {
    "int8": (packers.int8(6.0), _BNB),
    "int8, threshold 0": (packers.dynamic_int8(), _AO),
    "nf4": (packers.blocks_of_four_bits("nf4", double=True), _BNB),
    "nf4, scales whole": (packers.blocks_of_four_bits("nf4", double=False), _BNB),
    "fp4": (packers.blocks_of_four_bits("fp4", double=True), _BNB),
    "fp4, scales whole": (packers.blocks_of_four_bits("fp4", double=False), _BNB),
    NEAREST: (packers.integers(4, 64), _AO),
    "uniform, 4 bits, with zeros": (packers.integers(4, 64, symmetric=False), _AO),
    "uniform, 3 bits": (packers.integers(3, 64), _AO),
    "uniform, 2 bits": (packers.integers(2, 64), _AO),
}
"""Another package at equal bits."""

_work = partial(Work, same=close(absolute=0), piece="model", repeats=1, warmup=0, peaks=False, timed=False)


SPEC = Spec(
    name="quantize_quality",
    threads=1,
    works=[
        _work(
            f"trained target (16M), groups of 64, {_TEXT}",
            [
                whole(),
                *(contender(name, config) for name, config in WITHOUT_TEXT.items()),
                *(
                    contender(name, config, _CALIBRATED if name.endswith("4 bits") else None)
                    for name, config in BY_TEXT.items()
                ),
                *(peer(f"{package}: {name}", pack, package) for name, (pack, package) in _PEERS.items()),
                # Not at equal work: hayless rounds inputs too.
                peer(f"{_AO}: fp8, weights alone", packers.float8(), _AO),
            ],
        ),
        _work(
            f"bits a byte that a method takes beyond another package's at equal bits, trained target (16M), {_TEXT}",
            [
                less(f"{name}, beyond {package}", WITHOUT_TEXT[name], pack, package)
                for name, (pack, package) in _PEERS.items()
            ],
            compared=False,
        ),
    ],
)
