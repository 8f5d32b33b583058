"""QLoRA's step at Llama's 7B shape on one GPU, beside bitsandbytes and PEFT (with Liger's kernels too) and Unsloth;
about three minutes.
"""

from functools import partial

import torch
from parts.lora_step import LoraStep, same
from parts.models import LLAMA_7B
from parts.training import Training

from hayless.core.measurement import Goal
from hayless.study.bench.spec import PEAK, RATE, Contender, Spec, Work

_RANK = 16
_step = LoraStep(
    Training(LLAMA_7B, rows=4, length=2048, precision="bf16", device="cuda"), _RANK, packed=True, recomputed=True
)
_DEFAULT = "bitsandbytes and PEFT, bare loop"
_PEER = ("bitsandbytes", "peft")
_GOALS = {
    RATE: Goal(op=">=", against=_DEFAULT, ratio=1.5),
    PEAK: Goal(op=">=", against=_DEFAULT, ratio=1 / 0.75),
}
_FUSED = ["fused_kernels", "chunked_loss"]


SPEC = Spec(
    name="quantize_qlora_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            f"training step, LoRA of rank {_RANK} on all linears in nf4 with double quantization, Llama-7B shape,"
            " random weights, 4 × 2048 tokens, checkpointing",
            [
                Contender(_DEFAULT, _step.peft, needs=_PEER),
                Contender(
                    "bitsandbytes and PEFT, bf16 adapters, Liger's kernels",
                    partial(_step.peft, torch.bfloat16, liger=True),
                    needs=(*_PEER, "liger_kernel"),
                ),
                Contender("Unsloth", _step.unsloth, needs=("unsloth",)),
                Contender(
                    "hayless, AdamW in pages, fused kernels, chunked loss",
                    partial(_step.hayless, memory=_FUSED, optimizer="paged"),
                    needs=("triton",),
                ),
                Contender(
                    "hayless, AdamW in pages, offload, fused kernels, chunked loss",
                    partial(_step.hayless, memory=["offload", *_FUSED], optimizer="paged"),
                    needs=("triton",),
                    goals=_GOALS,
                ),
                Contender(
                    "hayless, AdamW in pages, offload, compiled by block, chunked loss",
                    partial(_step.hayless, compile=True, memory=["offload", "chunked_loss"], optimizer="paged"),
                    goals=_GOALS,
                ),
            ],
            same=same,
            piece="step",
            tokens=_step.step.tokens,
            repeats=5,
            warmup=1,
        ),
    ],
)
