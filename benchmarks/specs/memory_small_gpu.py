"""Training all weights of 7B and 8B shapes in a small memory, on one GPU; some four minutes.

One row of 512 tokens, AdamW beside them for its rate. Weights are random, peaks are from fresh processes.
"""

from parts.ways import SAME, contender, under

from hayless.plan.grid import TrainCase
from hayless.study.bench.spec import Spec, Work


def _small(model: str, words: str, limits: dict[str, float]) -> Work:
    """Every way at one shape; limits of some in GiB."""
    contenders = [
        contender(
            f"hayless {'adamw' if way == 'full' else way}",
            TrainCase(model, f"{way}+chunked_loss+checkpointing", 1, 512, clips=way not in limits),
            peak=under(limits[way]) if way in limits else None,
        )
        for way in ("lomo", "adalomo", "adamw8bit", "full", "paged")
    ]
    name = f"{words} shape, all weights in bf16, 1 × 512 tokens, checkpointing, loss by chunks"
    return Work(name, contenders, same=SAME, piece="step", tokens=512, repeats=5, warmup=2)


SPEC = Spec(
    name="memory_small_gpu",
    device="cuda",
    turns="alone",
    works=[
        _small("llama-7b", "Llama-7B", {"lomo": 13.5, "adalomo": 15.0}),
        _small("llama-3-8b", "Llama-3-8B", {"lomo": 17.0, "adalomo": 17.0}),
    ],
)
