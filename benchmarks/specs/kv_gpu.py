"""A decode step over long caches of 8, 4 and 2 bits on one GPU, beside the cache in bf16; about three minutes."""

from functools import partial

from parts.held import HeldStep
from parts.models import llama_7b

from hayless.core.measurement import Goal
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import TIME, Contender, Spec, Work

_WHOLE = "cache in bf16"
_NOT_SLOWER = {TIME: Goal(op=">=", against=_WHOLE, ratio=1.0)}


def _step(rows: int, context: int) -> Work:
    step = HeldStep(llama_7b, rows, context)
    return Work(
        f"a step of {rows} row{'s' * (rows > 1)} on the device, Llama-7B shape, random weights, bf16, {context} tokens"
        " in the cache",
        [
            Contender(_WHOLE, step.whole),
            *(
                Contender(f"cache in {bits} bits", partial(step.quantized, bits), goals=_NOT_SLOWER)
                for bits in (8, 4, 2)
            ),
        ],
        same=as_exact(),
        piece="step",
        repeats=30,
        warmup=5,
        peaks=False,
        clock="device",
    )


SPEC = Spec(name="kv_gpu", device="cuda", works=[_step(1, 16_000), _step(8, 4096), _step(32, 1000)])
