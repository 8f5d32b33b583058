"""A training step of the demo's model on the CPU, beside transformers in a bare loop."""

from functools import partial

from parts.demo import config
from parts.training import Training

from hayless.measure.rehearsal import rehearse_training
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Spec, Work

_STEP = Training(config("target"), rows=4, length=128, precision="fp32")

SPEC = Spec(
    name="train_cpu",
    threads=1,
    works=[
        Work(
            "training step, the demo's Llama (4 layers, 128 wide, vocabulary 2048), fp32, 4 × 128 tokens, one thread",
            [Contender("transformers, bare loop", _STEP.transformers), Contender("hayless", _STEP.hayless)],
            same=close(relative=1e-4),
            piece="step",
            tokens=_STEP.tokens,
            repeats=40,
            rehearse=partial(rehearse_training, "cpu"),
        )
    ],
)
