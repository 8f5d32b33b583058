"""What each switch of the fast path gives by itself, on a training step of Llama's 1B shape; some six minutes.

AdamW in one kernel, fused kernels, the loss by chunks, compilation by block and whole, packed rows by lengths and under
masks, 8-bit floats. Those that go together are in `train_fast_gpu`.
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


def _work(kind: str, contenders: list[Contender], *, off: float = 0.01) -> Work:
    """`off`: what losses and norms may differ by. bf16 keeps 8 bits, of a norm too."""
    name = f"training step, {_SHAPE}{kind}"
    return Work(name, contenders, same=close(relative=off), piece="step", tokens=_STEP.tokens, repeats=12)


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
            ", a document a row, 8-bit floats beside 16 bits",
            [
                Contender("hayless", _hayless),
                Contender("hayless, 8-bit floats", partial(_hayless, memory=["float8_linears"])),
                Contender(
                    "hayless, 8-bit floats, compiled by block",
                    partial(_hayless, compile=True, memory=["float8_linears"]),
                ),
                Contender(
                    "hayless, 8-bit floats, fused kernels, chunked loss",
                    partial(_hayless, memory=["float8_linears", "fused_kernels", "chunked_loss"]),
                    needs=("triton",),
                ),
            ],
            # Products keep 3 bits of mantissa: gradient norms differ by more than those of 16 bits do.
            off=0.1,
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
