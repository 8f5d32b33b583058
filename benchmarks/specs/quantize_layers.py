"""Where weights of few bits are off in a trained model of 16M parameters: errors by layer, of weights and of outputs.

`--input models=FOLDER` has the model.
"""

from functools import partial

from parts.few_bits import BY_TEXT, WITHOUT_TEXT
from parts.quantized import layers, layers_of_outputs

from hayless.study.bench.gate import close
from hayless.study.bench.spec import Spec, Work

_work = partial(
    Work, same=close(absolute=0), piece="model", repeats=1, warmup=0, peaks=False, timed=False, compared=False
)

SPEC = Spec(
    name="quantize_layers",
    threads=1,
    works=[
        _work(
            "error of the trained target's (16M) weights by layer, of their root mean square",
            [layers(name, config) for name, config in WITHOUT_TEXT.items()],
        ),
        _work(
            "squared error of what the trained target's (16M) weights put out, as a share, by layer, calibration text",
            [layers_of_outputs(name, config) for name, config in BY_TEXT.items()],
        ),
    ],
)
