"""A training step of Llama's 1B shape on one GPU, beside transformers in a bare loop; about two minutes."""

from functools import partial

from parts.models import LLAMA_1B
from parts.training import Training

from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Spec, Work

_STEP = Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda")

SPEC = Spec(
    name="train_1b",
    device="cuda",
    turns="alone",
    works=[
        Work(
            "training step, Llama-1B shape, random weights, all bf16, AdamW, 8 × 2048 tokens",
            [
                Contender("transformers, bare loop", _STEP.transformers),
                Contender("transformers, bare loop, torch.compile", partial(_STEP.transformers, compile=True)),
                Contender("hayless", _STEP.hayless),
                Contender("hayless, compile", partial(_STEP.hayless, compile=True)),
            ],
            # bf16 keeps 8 bits, of a norm too; a wrong learning rate shows in the losses by more.
            same=close(relative=0.01),
            piece="step",
            tokens=_STEP.tokens,
            repeats=12,
        )
    ],
)
