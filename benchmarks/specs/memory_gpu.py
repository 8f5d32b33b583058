"""Training with few bytes beside the weights, on one GPU: LOMO's table, 65B on one card, 7B and 8B in small memories,
and LOMO's step beside SGD's; some ten minutes. Weights are random, peaks are from fresh processes. What a card is too
small for says so.
"""

from parts.ways import LEARNT, Trained

from hayless.core.measurement import Goal
from hayless.plan.grid import TrainCase
from hayless.plan.lomo import GIB, PUBLISHED
from hayless.study.bench.gate import close
from hayless.study.bench.spec import PEAK, TIME, Contender, Spec, Work

_SAME = close(relative=0.02)
"""Of 16-bit losses and norms of one batch, before anything is moved."""
_FALLS = Goal(op="<=", value=0.0)


def _under(gib: float) -> Goal:
    return Goal(op="<=", value=gib * GIB)


def _contender(name: str, case: TrainCase, *, peak: Goal | None = None, time: Goal | None = None) -> Contender:
    goals = {LEARNT: _FALLS} | ({PEAK: peak} if peak else {}) | ({TIME: time} if time else {})
    return Contender(name, Trained(case).prepare, goals=goals)


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
            contenders.append(_contender(f"hayless {row}", case, peak=_under(limit)))
        saving = "checkpointing, loss by chunks" if again else "no checkpointing"
        name = f"Llama-7B shape, all weights, 8 × 512 tokens, {saving}"
        found.append(Work(name, contenders, same=_SAME, piece="step", tokens=8 * 512, repeats=5, warmup=2))
    return found


def _small(model: str, words: str, limits: dict[str, float]) -> Work:
    """Ways in a small memory, one row of 512 tokens, AdamW beside them for its rate. Limits in GiB."""
    clips = {way: way not in limits for way in ("lomo", "adalomo", "adamw8bit", "paged", "full")}
    contenders = [
        _contender(
            f"hayless {'adamw' if way == 'full' else way}",
            TrainCase(model, f"{way}+chunked_loss+checkpointing", 1, 512, clips=clip),
            peak=_under(limits[way]) if way in limits else None,
        )
        for way, clip in clips.items()
    ]
    name = f"{words} shape, all weights in bf16, 1 × 512 tokens, checkpointing, loss by chunks"
    return Work(name, contenders, same=_SAME, piece="step", tokens=512, repeats=5, warmup=2)


def _step() -> Work:
    """LOMO's step beside SGD's, with one backward pass and with two."""
    cases = {
        "hayless SGD": TrainCase("llama-3b", "sgd+checkpointing", 2, 2048, clips=False),
        "hayless SGD, clipped": TrainCase("llama-3b", "sgd+checkpointing", 2, 2048),
        "hayless LOMO": TrainCase("llama-3b", "lomo+checkpointing", 2, 2048, clips=False),
        "hayless LOMO, clipped": TrainCase("llama-3b", "lomo+checkpointing", 2, 2048),
    }
    goals = {"hayless LOMO": Goal(op=">=", against="hayless SGD", ratio=1.0)}
    contenders = [_contender(name, case, time=goals.get(name)) for name, case in cases.items()]
    name = "Llama-3B shape, all weights in bf16, 2 × 2048 tokens, checkpointing"
    return Work(name, contenders, same=_SAME, piece="step", tokens=2 * 2048, repeats=10)


SPEC = Spec(
    name="memory_gpu",
    device="cuda",
    turns="alone",
    works=[
        *_table(),
        Work(
            "Llama-65B shape, all weights in bf16, 1 × 512 tokens, checkpointing",
            [
                _contender(
                    "hayless LOMO",
                    TrainCase("llama-65b", "lomo+checkpointing", 1, 512, clips=False),
                    peak=Goal(op="<=", value=128.0 * GIB),
                )
            ],
            same=_SAME,
            piece="step",
            tokens=512,
            repeats=5,
            warmup=2,
        ),
        _small("llama-7b", "Llama-7B", {"lomo": 13.5, "adalomo": 15.0}),
        _small("llama-3-8b", "Llama-3-8B", {"lomo": 17.0, "adalomo": 17.0}),
        _step(),
    ],
)
