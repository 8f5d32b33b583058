"""Speculative decoding as tables: the formulas of its method beside both papers' figures.

Leviathan et al., 2022, arXiv:2211.17192; Chen et al., 2023, arXiv:2302.01318.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from hayless.methods.decoding.speculative.predict import (
    MOST_DRAFTED,
    acceptances,
    best_drafted,
    expected_tokens,
    speedup,
    tokens_of,
)
from hayless.plan.table import Table

DRAFT, TARGET = (0.8, 0.7, 0.9, 0.8, 0.7), (0.9, 0.8, 0.8, 0.3, 0.8)
"""The worked example: probabilities that draft and target give five drafted tokens."""


@dataclass(frozen=True, slots=True)
class Published:
    """A row of arXiv:2211.17192's table 2: task, temperature, draft model, γ, α and the measured speed-up."""

    task: str
    temperature: int
    draft: str
    drafted: int
    acceptance: float
    speedup: float


PUBLISHED = (
    Published("EnDe", 0, "T5-small", 7, 0.75, 3.4),
    Published("EnDe", 0, "T5-base", 7, 0.80, 2.8),
    Published("EnDe", 0, "T5-large", 7, 0.82, 1.7),
    Published("EnDe", 1, "T5-small", 7, 0.62, 2.6),
    Published("EnDe", 1, "T5-base", 5, 0.68, 2.4),
    Published("EnDe", 1, "T5-large", 3, 0.71, 1.4),
    Published("CNNDM", 0, "T5-small", 5, 0.65, 3.1),
    Published("CNNDM", 0, "T5-base", 5, 0.73, 3.0),
    Published("CNNDM", 0, "T5-large", 3, 0.74, 2.2),
    Published("CNNDM", 1, "T5-small", 5, 0.53, 2.3),
    Published("CNNDM", 1, "T5-base", 3, 0.55, 2.2),
    Published("CNNDM", 1, "T5-large", 3, 0.56, 1.7),
)

CHINCHILLA_MS = 14.1
CHINCHILLA = (("XSum, nucleus", 7.52, 1.92), ("XSum, greedy", 7.00, 2.01), ("HumanEval, nucleus", 5.73, 2.46))
"""ms a token without drafts; task, ms a token with, printed speed-up."""


def implied_cost(row: Published) -> float:
    """The c at which the formula gives a measured speed-up; negative where even free drafts are not enough."""
    return (expected_tokens(row.acceptance, row.drafted) / row.speedup - 1) / row.drafted


def table(acceptance: float, drafted: int, cost: float) -> Table:
    """Speed-up for γ around the one given, and the best."""
    best = best_drafted(acceptance, cost)
    speedup(acceptance, drafted, cost)
    shown = sorted({*range(1, 9), drafted, best})
    records = [
        {
            "gamma": count,
            "alpha": acceptance,
            "c": cost,
            "expected_tokens": expected_tokens(acceptance, count),
            "speedup": speedup(acceptance, count, cost),
            "best": count == best,
        }
        for count in shown
    ]
    marks = {drafted: "asked for", best: "best"} | ({best: "asked for and best"} if best == drafted else {})
    cells = tuple(
        (
            f"{count}",
            f"{expected_tokens(acceptance, count):.3f}",
            f"{speedup(acceptance, count, cost):.3f}×",
            marks.get(count, ""),
        )
        for count in shown
    )
    notes = () if best else ("No γ is faster than decoding without drafts.",)
    if best == MOST_DRAFTED:
        notes = (f"γ was looked for up to {MOST_DRAFTED} only; more would be faster still.",)
    return Table(
        f"Speculative decoding: α {acceptance:g}, c {cost:g}",
        ("γ", "tokens a pass", "speed-up", ""),
        cells,
        tuple(records),
        notes,
    )


def example(draft: Sequence[float] = DRAFT, target: Sequence[float] = TARGET) -> Table:
    """Acceptance of each drafted token and the expected tokens of the pass."""
    accepted = acceptances(draft, target)
    chances = list(accumulate(accepted, mul))
    cells, records = [], []
    for number, (p, q, accept, chance) in enumerate(zip(draft, target, accepted, chances, strict=True), 1):
        cells.append((f"{number}", f"{p:g}", f"{q:g}", f"{accept:.3f}", f"{chance:.3f}"))
        records.append(
            {"token": number, "draft": p, "target": q, "accepted_probability": accept, "reached_probability": chance}
        )
    total = tokens_of(accepted)
    records.append({"expected_tokens": total, "least_tokens": 1, "most_tokens": len(accepted) + 1})
    return Table(
        "One pass: each drafted token's chance",
        ("token", "draft p", "target q", "accepted min(1, q/p)", "with all before it"),
        tuple(cells),
        tuple(records),
        (f"Expected tokens of the pass: {total:.3f}; at worst 1, at best {len(accepted) + 1}.",),
    )


def published() -> tuple[Table, ...]:
    """The worked example and both papers' measurements beside what the formula allows."""
    cells, records = [], []
    for row in PUBLISHED:
        most = expected_tokens(row.acceptance, row.drafted)
        cost = implied_cost(row)
        names = (row.task, f"{row.temperature}", row.draft, f"{row.drafted}", f"{row.acceptance:g}")
        best = f"{best_drafted(row.acceptance, cost)}" if cost >= 0 else ""
        cells.append((*names, f"{row.speedup:.1f}×", f"{most:.2f}×", f"{cost:.3f}".replace("-", "−"), best))
        records.append(
            {
                "task": row.task,
                "temperature": row.temperature,
                "draft": row.draft,
                "gamma": row.drafted,
                "alpha": row.acceptance,
                "printed_speedup": row.speedup,
                "speedup_with_free_drafts": most,
                "implied_c": cost,
            }
        )
    t5 = Table(
        "T5-XXL: measured speed-ups, and the cost of a draft they imply",
        ("task", "T", "draft", "γ", "α", "printed", "with c = 0", "implied c", "best γ at that c"),
        tuple(cells),
        tuple(records),
        ("c is not printed by row; an implied c below 0 means that α, rounded or averaged, is too low for the speed.",),
        "arXiv:2211.17192, table 2",
    )
    ratios = [(task, ms, printed, CHINCHILLA_MS / ms) for task, ms, printed in CHINCHILLA]
    chinchilla = Table(
        f"Chinchilla 70B, K = 4: {CHINCHILLA_MS} ms a token without drafts",
        ("task", "ms a token", "printed", "ratio of the printed times"),
        tuple((task, f"{ms:.2f}", f"{printed:.2f}×", f"{ratio:.3f}×") for task, ms, printed, ratio in ratios),
        tuple(
            {"task": task, "ms_per_token": ms, "printed_speedup": printed, "ratio": ratio}
            for task, ms, printed, ratio in ratios
        ),
        ("XSum's printed 1.92× is not the ratio of its own printed times.",),
        "arXiv:2302.01318, table 1",
    )
    return example(), t5, chinchilla
