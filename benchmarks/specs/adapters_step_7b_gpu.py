"""A training step of LoRA at Llama's 7B shape with checkpointing on one GPU, beside PEFT, PEFT with Liger's kernels and
Unsloth; about four minutes.
"""

from functools import partial

import torch
from parts.lora_step import LoraStep, same
from parts.models import LLAMA_7B
from parts.training import Training

from hayless.core.measurement import Goal
from hayless.study.bench.spec import PEAK, RATE, Contender, Spec, Work

_RANK = 16
_step = LoraStep(Training(LLAMA_7B, rows=4, length=2048, precision="bf16", device="cuda"), _RANK, recomputed=True)
_DEFAULT = "PEFT, bare loop"
_GOALS = {
    RATE: Goal(op=">=", against=_DEFAULT, ratio=1.5),
    PEAK: Goal(op=">=", against=_DEFAULT, ratio=1 / 0.9),
}

SPEC = Spec(
    name="adapters_step_7b_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            f"training step, LoRA of rank {_RANK} on all linears, Llama-7B shape, random weights in bf16, AdamW,"
            " 4 × 2048 tokens, checkpointing",
            [
                Contender(_DEFAULT, _step.peft, needs=("peft",)),
                Contender(
                    "PEFT, bf16 adapters, compiled by block",
                    partial(_step.peft, torch.bfloat16, compile=True),
                    needs=("peft",),
                ),
                Contender(
                    "PEFT, bf16 adapters, Liger's kernels",
                    partial(_step.peft, torch.bfloat16, liger=True),
                    needs=("peft", "liger_kernel"),
                ),
                Contender("Unsloth", _step.unsloth, needs=("unsloth",)),
                Contender(
                    "hayless, offload, fused kernels, chunked loss",
                    partial(_step.hayless, memory=["offload", "fused_kernels", "chunked_loss"]),
                    needs=("triton",),
                    goals=_GOALS,
                ),
                Contender(
                    "hayless, offload, compiled by block, chunked loss",
                    partial(_step.hayless, compile=True, memory=["offload", "chunked_loss"]),
                    goals=_GOALS,
                ),
            ],
            same=same,
            piece="step",
            tokens=_step.step.tokens,
            repeats=5,
            warmup=1,
        )
    ],
)
