"""What enters checkpointed blocks on the host, beside the same on the GPU: a step's time, and its predicted peak.

Under two minutes on one GPU; weights are random.
"""

from parts.ways import SAME, as_predicted, contender

from hayless.core.measurement import Goal
from hayless.plan.grid import TrainCase
from hayless.study.bench.spec import Spec, Work

_HERE, _THERE = "checkpoints on the GPU", "checkpoints on the host"
_SAVINGS = ("checkpointing", "checkpointing+offload")
_RATE = Goal(op=">=", against=_HERE, ratio=0.95)


def _beside(way: str, words: str) -> Work:
    here, there = (TrainCase("llama-7b", f"{way}+chunked_loss+{saving}", 4, 2048) for saving in _SAVINGS)
    return Work(
        f"Llama-7B shape in bf16, {words}, 4 × 2048 tokens, checkpointing, loss by chunks",
        [contender(_HERE, here), contender(_THERE, there, peak=as_predicted(there), time=_RATE)],
        same=SAME,
        piece="step",
        tokens=4 * 2048,
        repeats=10,
    )


SPEC = Spec(
    name="memory_offload_gpu",
    device="cuda",
    turns="alone",
    works=[_beside("full", "all weights with AdamW"), _beside("lora", "LoRA")],
)
