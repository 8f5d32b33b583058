"""What each switch of the fast path gives by itself, on a training step of Llama's 1B shape; some five minutes.

AdamW in one kernel, fused kernels, the loss by chunks, compilation by block and whole, packed rows by lengths and under
masks. Those that go together are in `train_fast_gpu`, products of 8-bit floats in `train_float8_gpu`.
"""

from functools import partial

from parts.models import LLAMA_1B
from parts.packing import packed_step
from parts.training import Training

from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Spec, Work

_STEP = Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda")
_SHAPE = "Llama-1B shape, random weights, all bf16, AdamW, 8 × 2048 tokens"
_PRODUCTS = {"name": "checkpointing", "keep": "products"}
_hayless = _STEP.hayless


def _work(kind: str, contenders: list[Contender]) -> Work:
    # bf16 keeps 8 bits, of a norm too.
    name = f"training step, {_SHAPE}{kind}"
    return Work(name, contenders, same=close(relative=0.01), piece="step", tokens=_STEP.tokens, repeats=12)


SPEC = Spec(
    name="train_ablation_gpu",
    device="cuda",
    turns="alone",
    works=[
        _work(
            ", a document a row",
            [
                Contender("hayless", _hayless),
                Contender("hayless, fused kernels", partial(_hayless, memory=["fused_kernels"]), needs=("triton",)),
                Contender("hayless, chunked loss", partial(_hayless, memory=["chunked_loss"])),
                Contender(
                    "hayless, fused kernels, chunked loss",
                    partial(_hayless, memory=["fused_kernels", "chunked_loss"]),
                    needs=("triton",),
                ),
                Contender(
                    "hayless, checkpointing that keeps products, chunked loss",
                    partial(_hayless, memory=[_PRODUCTS, "chunked_loss"]),
                ),
            ],
        ),
        _work(
            ", a document a row, AdamW",
            [
                Contender("one kernel for many weights", _STEP.transformers),
                Contender("kernel by kernel", partial(_STEP.transformers, fused=False)),
            ],
        ),
        _work(
            ", a document a row, compiled",
            [
                Contender("not compiled", _hayless),
                Contender("by block", partial(_hayless, compile=True)),
                Contender("whole", partial(_hayless, compile="whole")),
            ],
        ),
        _work(
            " of Python's library, packed",
            [
                Contender("sdpa, an explicit mask", partial(packed_step, _STEP, "stdlib", "sdpa")),
                Contender("varlen, cumulative lengths", partial(packed_step, _STEP, "stdlib", "varlen")),
            ],
        ),
    ],
)
