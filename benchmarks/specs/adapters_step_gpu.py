"""A training step of LoRA at Llama's 1B shape on one GPU, beside PEFT, PEFT with Liger's kernels, Unsloth, and training
all weights compiled; about four minutes.
"""

from functools import partial

import torch
from parts.lora_step import LoraStep, same
from parts.models import LLAMA_1B
from parts.training import Training

from hayless.core.measurement import Goal
from hayless.study.bench.spec import PEAK, RATE, Contender, Spec, Work

_RANK = 16
_step = LoraStep(Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda"), _RANK)
_DEFAULT, _BEST = "PEFT, bare loop", "PEFT, bf16 adapters, compiled by block"
_FULL = "all weights, no LoRA, transformers, torch.compile"
_GOALS = {
    RATE: (
        Goal(op=">=", against=_DEFAULT, ratio=2),
        Goal(op=">=", against=_BEST, ratio=1.2),
        Goal(op=">=", against=_FULL, ratio=1),
    ),
    PEAK: Goal(op=">=", against=_DEFAULT, ratio=1 / 0.45),
}

SPEC = Spec(
    name="adapters_step_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            f"training step, LoRA of rank {_RANK} on all linears, Llama-1B shape, random weights in bf16, AdamW,"
            " 8 × 2048 tokens",
            [
                Contender(_DEFAULT, _step.peft, needs=("peft",)),
                Contender(_BEST, partial(_step.peft, torch.bfloat16, compile=True), needs=("peft",)),
                Contender(
                    "PEFT, bf16 adapters, Liger's kernels",
                    partial(_step.peft, torch.bfloat16, liger=True),
                    needs=("peft", "liger_kernel"),
                ),
                Contender("Unsloth", _step.unsloth, needs=("unsloth",)),
                Contender(_FULL, _step.full),
                Contender(
                    "hayless, fused kernels, chunked loss",
                    partial(_step.hayless, memory=["fused_kernels", "chunked_loss"]),
                    needs=("triton",),
                ),
                Contender(
                    "hayless, compiled by block, chunked loss",
                    partial(_step.hayless, compile=True, memory=["chunked_loss"]),
                    goals=_GOALS,
                ),
            ],
            same=same,
            piece="step",
            tokens=_step.step.tokens,
            repeats=6,
            warmup=2,
        )
    ],
)
