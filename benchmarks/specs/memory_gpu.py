"""Training with few bytes beside the weights, on one GPU: LOMO's table, and 65B on one card; some four minutes.

Weights are random, peaks are from fresh processes. What a card is too small for says so.
"""

from parts.ways import SAME, contender, under

from hayless.plan.grid import TrainCase
from hayless.plan.lomo import PUBLISHED
from hayless.study.bench.spec import Spec, Work


def _table() -> list[Work]:
    """LOMO's table 1: totals with and without checkpointing, within 3% of what is printed or lower."""
    found = []
    for again in (True, False):
        contenders = []
        for row, way, precision in (("LOMO", "lomo", "bf16"), ("SGD", "sgd", "master"), ("AdamW", "full", "master")):
            printed = float(PUBLISHED[row].checkpointed if again else PUBLISHED[row].total)
            way += "+chunked_loss+checkpointing" if again else ""
            case = TrainCase("llama-7b", way, 8, 512, precision, clips=False)
            limit = 14.6 if row == "LOMO" and again else 1.03 * printed
            contenders.append(contender(f"hayless {row}", case, peak=under(limit)))
        saving = "checkpointing, loss by chunks" if again else "no checkpointing"
        name = f"Llama-7B shape, all weights, 8 × 512 tokens, {saving}"
        found.append(Work(name, contenders, same=SAME, piece="step", tokens=8 * 512, repeats=5, warmup=2))
    return found


SPEC = Spec(
    name="memory_gpu",
    device="cuda",
    turns="alone",
    works=[
        *_table(),
        Work(
            "Llama-65B shape, all weights in bf16, 1 × 512 tokens, checkpointing",
            [
                contender(
                    "hayless LOMO",
                    TrainCase("llama-65b", "lomo+checkpointing", 1, 512, clips=False),
                    peak=under(128.0),
                )
            ],
            same=SAME,
            piece="step",
            tokens=512,
            repeats=5,
            warmup=2,
        ),
    ],
)
