"""What products of 8-bit floats give a training step of Llama's 1B shape beside 16 bits; some four minutes.

Each way is compared with the same one in 16 bits.
"""

from functools import partial

from parts.models import LLAMA_1B
from parts.training import Memory, Training

from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Spec, Work

_STEP = Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda")


def _work(kind: str, *memory: Memory, compile: bool = False) -> Work:
    name = f"training step, Llama-1B shape, random weights, all bf16, AdamW, 8 × 2048 tokens{kind}"
    contenders = [
        Contender("hayless, 16 bits", partial(_STEP.hayless, compile=compile, memory=memory)),
        Contender("hayless, 8-bit floats", partial(_STEP.hayless, compile=compile, memory=[*memory, "float8_linears"])),
    ]
    # Products keep 3 bits of mantissa: losses and gradient norms differ by more than those of 16 bits do.
    return Work(name, contenders, same=close(relative=0.1), piece="step", tokens=_STEP.tokens, repeats=12)


SPEC = Spec(
    name="train_float8_gpu",
    device="cuda",
    turns="alone",
    works=[
        _work(""),
        _work(", compiled by block", compile=True),
        _work(", compiled by block, loss by chunks", "chunked_loss", compile=True),
        _work(", fused kernels, loss by chunks", "fused_kernels", "chunked_loss"),
    ],
)
