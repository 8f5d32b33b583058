"""The fastest training step of Llama's 1B shape on one GPU, beside transformers in a bare loop; some five minutes.

Compiled with the loss by chunks; what each switch gives by itself is in `train_ablation_gpu`.
"""

from functools import partial

from parts.limits import multiplying
from parts.models import LLAMA_1B
from parts.training import Training

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import PEAK, TIME, Contender, Limit, Spec, Work

_STEP = Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda")
_COMPILED = "transformers, bare loop, torch.compile"
_RATE = "rate of a large product"
_GOALS = {
    # 70 % of what the device multiplies, and 1.15 times as fast as what is compiled otherwise in 0.6 of its memory.
    TIME: (Goal(op=">=", against=_COMPILED, ratio=1.15), Goal(op=">=", against=_RATE, ratio=0.7)),
    PEAK: Goal(op=">=", against=_COMPILED, ratio=1 / 0.6),
}

SPEC = Spec(
    name="train_fast_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            "training step, Llama-1B shape, random weights, all bf16, AdamW, 8 × 2048 tokens, a document a row",
            [
                Contender("transformers, bare loop", _STEP.transformers),
                Contender(_COMPILED, partial(_STEP.transformers, compile=True)),
                Contender(
                    "hayless, compiled by block, chunked loss",
                    partial(_STEP.hayless, compile=True, memory=["chunked_loss"]),
                    goals=_GOALS,
                ),
            ],
            # bf16 keeps 8 bits, of a norm too; a wrong learning rate shows in the losses by more.
            same=close(relative=0.01),
            piece="step",
            tokens=_STEP.tokens,
            repeats=12,
            limit=Limit(_RATE, lambda: multiplying(_STEP.flops)),
        ),
    ],
)
