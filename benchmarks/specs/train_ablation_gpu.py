"""What each switch of the fast path gives by itself, on a training step of Llama's 1B shape; about ten minutes.

Packed rows by lengths and under masks, AdamW in one kernel, compilation by block and whole, fused kernels, the loss by
chunks, 8-bit floats, and those that go together.
"""

from functools import partial

from parts.limits import multiplying
from parts.models import LLAMA_1B
from parts.packing import packed_step
from parts.training import Training

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import PEAK, TIME, Contender, Limit, Spec, Work

_STEP = Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda")
_SHAPE = "Llama-1B shape, random weights, all bf16, AdamW, 8 × 2048 tokens"
_COMPILED = "transformers, bare loop, torch.compile"
_RATE = "rate of a large product"
_GOALS = {
    # 70 % of what the device multiplies, and 1.15 times as fast as what is compiled otherwise in 0.6 of its memory.
    TIME: (Goal(op=">=", against=_COMPILED, ratio=1.15), Goal(op=">=", against=_RATE, ratio=0.7)),
    PEAK: Goal(op=">=", against=_COMPILED, ratio=1 / 0.6),
}
_hayless = _STEP.hayless

SPEC = Spec(
    name="train_ablation_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            f"training step, {_SHAPE}, a document a row",
            [
                Contender("transformers, bare loop", _STEP.transformers),
                Contender("transformers, bare loop, AdamW kernel by kernel", partial(_STEP.transformers, fused=False)),
                Contender(_COMPILED, partial(_STEP.transformers, compile=True)),
                Contender("hayless", _hayless),
                Contender("hayless, compiled by block", partial(_hayless, compile=True)),
                Contender("hayless, compiled whole", partial(_hayless, compile="whole")),
                Contender("hayless, fused kernels", partial(_hayless, memory=["fused_kernels"]), needs=("triton",)),
                Contender("hayless, chunked loss", partial(_hayless, memory=["chunked_loss"])),
                Contender(
                    "hayless, fused kernels, chunked loss",
                    partial(_hayless, memory=["fused_kernels", "chunked_loss"]),
                    needs=("triton",),
                ),
                Contender(
                    "hayless, compiled by block, chunked loss",
                    partial(_hayless, compile=True, memory=["chunked_loss"]),
                    goals=_GOALS,
                ),
                Contender(
                    "hayless, compiled whole, chunked loss",
                    partial(_hayless, compile="whole", memory=["chunked_loss"]),
                    goals=_GOALS,
                ),
                Contender(
                    "hayless, checkpointing that keeps products, chunked loss",
                    partial(_hayless, memory=[{"name": "checkpointing", "keep": "products"}, "chunked_loss"]),
                ),
            ],
            # bf16 keeps 8 bits, of a norm too; a wrong learning rate shows in the losses by more.
            same=close(relative=0.01),
            piece="step",
            tokens=_STEP.tokens,
            repeats=12,
            limit=Limit(_RATE, lambda: multiplying(_STEP.flops)),
        ),
        Work(
            f"training step, {_SHAPE}, a document a row, 8-bit floats beside 16 bits",
            [
                Contender("hayless", _hayless),
                Contender("hayless, 8-bit floats", partial(_hayless, memory=["float8_linears"])),
                Contender(
                    "hayless, 8-bit floats, compiled by block",
                    partial(_hayless, compile=True, memory=["float8_linears"]),
                ),
            ],
            # Products keep 3 bits of mantissa: gradient norms differ by more than those of 16 bits do.
            same=close(relative=0.1),
            piece="step",
            tokens=_STEP.tokens,
            repeats=12,
        ),
        Work(
            f"training step, {_SHAPE} of Python's library, packed",
            [
                Contender("sdpa, an explicit mask", partial(packed_step, _STEP, "stdlib", "sdpa")),
                Contender("varlen, cumulative lengths", partial(packed_step, _STEP, "stdlib", "varlen")),
            ],
            same=close(relative=0.01),
            piece="step",
            tokens=_STEP.tokens,
            repeats=12,
        ),
    ],
)
