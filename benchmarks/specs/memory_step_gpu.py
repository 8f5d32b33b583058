"""LOMO's step beside SGD's, with one backward pass and, where gradients are clipped by their norm, with two.

About a minute on one GPU; weights are random.
"""

from parts.ways import SAME, contender

from hayless.core.measurement import Goal
from hayless.plan.grid import TrainCase
from hayless.study.bench.spec import Spec, Work

_CASES = {
    "hayless SGD": TrainCase("llama-3b", "sgd+checkpointing", 2, 2048, clips=False),
    "hayless LOMO": TrainCase("llama-3b", "lomo+checkpointing", 2, 2048, clips=False),
    "hayless SGD, clipped": TrainCase("llama-3b", "sgd+checkpointing", 2, 2048),
    "hayless LOMO, clipped": TrainCase("llama-3b", "lomo+checkpointing", 2, 2048),
}
_GOALS = {"hayless LOMO": Goal(op=">=", against="hayless SGD", ratio=1.0)}

SPEC = Spec(
    name="memory_step_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            "Llama-3B shape, all weights in bf16, 2 × 2048 tokens, checkpointing",
            [contender(name, case, time=_GOALS.get(name)) for name, case in _CASES.items()],
            same=SAME,
            piece="step",
            tokens=2 * 2048,
            repeats=15,
        )
    ],
)
