"""The findings of a sweep as tables: the law beside the published ones, its misses, the optimum, depth and width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from hayless.core.errors import bad_value
from hayless.core.units import format_count
from hayless.plan.scaling import CHINCHILLA, REFIT, Parametric
from hayless.plan.sweep.findings import SAME_TOKENS, Findings, near, spread
from hayless.plan.sweep.fit import SEARCHED, at_edge
from hayless.plan.sweep.runs import Run
from hayless.plan.table import Table

WHAT_COUNTS = {
    "total": "N counts all parameters, embeddings included, as Chinchilla's does.",
    "non-embedding": "N leaves embeddings and head out, as Kaplan's does.",
}

_FIGURES: Mapping[str, tuple[str, Callable[[Parametric], float]]] = {
    "E": ("irreducible_loss_nats", lambda law: law.irreducible),
    "A": ("a_nats", lambda law: law.a),
    "B": ("b_nats", lambda law: law.b),
    "α": ("alpha", lambda law: law.alpha),
    "β": ("beta", lambda law: law.beta),
    "a, of N_opt ∝ C^a": ("size_exponent", lambda law: law.size_exponent),
}
_PUBLISHED = {"chinchilla": CHINCHILLA, "refit": REFIT}


def tables(found: Findings, budgets: Sequence[float] = ()) -> list[Table]:
    """The findings, the optimum for `budgets` of FLOPs: the most that a fitted run took and ten times that, if none."""
    most = max(found.compute(run) for run in found.runs)
    parts = [_law(found), _runs(found), _held(found), _optimum(found, budgets or (most, 10 * most)), _shapes(found)]
    return [part for part in parts if part is not None]


def _law(found: Findings) -> Table:
    cells: list[tuple[str, ...]] = []
    record: dict[str, float] = {}
    notes = [
        WHAT_COUNTS[found.counted],
        f"Intervals are over {len(found.laws)} resamples of {len(found.runs)} runs, fitted each.",
        "The published laws are of other text and other tokens: exponents compare, losses do not.",
    ]
    for symbol, (name, figure) in _FIGURES.items():
        values = (figure(found.law), *found.interval(figure))
        cells.append((symbol, *(f"{value:.4g}" for value in (*values, *map(figure, _PUBLISHED.values())))))
        record |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        if symbol in ("α", "β") and any(map(at_edge, values)):
            edges = " to ".join(f"{edge:g}" for edge in SEARCHED)
            notes.append(
                f"These runs do not determine {symbol}: its interval ends at the edge of what is searched, {edges}."
            )
    notes += [f"Left out: {line}." for line in found.left_out]
    return Table(
        f"L(N, D) = {found.law.formula()} nats a token, fitted to {len(found.runs)} runs",
        ("", "fitted", "95% from", "to", "Chinchilla", "refitted"),
        tuple(cells),
        ({"parameters_counted": found.counted, "runs": len(found.runs), "resamples": len(found.laws), **record},),
        tuple(notes),
    )


def _runs(found: Findings) -> Table:
    ordered = sorted(found.runs, key=lambda run: (run.size(found.counted), run.tokens))
    records = [_record(found, run) for run in ordered]
    misses = sorted(abs(found.predicted(run) / run.loss - 1) for run in ordered)
    notes = [f"Median miss of a fitted run: {misses[len(misses) // 2]:.2%}; largest: {misses[-1]:.2%}."]
    if worse := _worse(found):
        notes.append(
            f"Worse than a smaller model after equally many tokens: {', '.join(run.name for run in worse)}. The law"
            " knows no such runs: they had too few updates, or a learning rate that does not suit them."
        )
    return Table(
        "The runs",
        ("run", "N", "D", "6ND", "loss", "fitted", "off"),
        tuple(_cells(found, run) for run in ordered),
        tuple(records),
        tuple(notes),
    )


def _worse(found: Findings) -> list[Run]:
    """Runs whose loss is more than a percent above that of a smaller model after as many tokens."""
    runs = [*found.runs, *filter(None, [found.held_out])]
    return [
        run
        for run in runs
        if any(
            other.size(found.counted) < run.size(found.counted)
            and near(other.tokens, run.tokens, SAME_TOKENS)
            and other.loss * 1.01 < run.loss
            for other in runs
        )
    ]


def _held(found: Findings) -> Table | None:
    run = found.held_out
    if run is None:
        return None
    low, high = found.interval(lambda law: law.loss(run.size(found.counted), run.tokens))
    times = found.compute(run) / max(found.compute(other) for other in found.runs)
    record = _record(found, run) | {
        "fitted_loss_low_nats": low,
        "fitted_loss_high_nats": high,
        "compute_beyond_fitted_ratio": times,
    }
    within = "within" if low <= run.loss <= high else "outside"
    return Table(
        "The run that was held out",
        ("run", "N", "D", "6ND", "loss", "predicted", "off"),
        (_cells(found, run),),
        (record,),
        (
            f"{times:.3g} times the compute of the largest fitted run. Its loss is {within} the law's 95% interval,"
            f" {low:.3f} to {high:.3f}.",
        ),
    )


def _optimum(found: Findings, budgets: Sequence[float]) -> Table:
    cells, records = [], []
    for budget in budgets:
        if not (budget > 0 and math.isfinite(budget)):
            raise bad_value("flops", budget, allowed="a number above 0, such as 1e15")
        parameters, tokens = found.law.optimum(budget)
        loss = found.law.loss(parameters, tokens)
        low, high = found.interval(lambda law, budget=budget: law.optimum(budget)[0])  # type: ignore[misc]
        by = {name: law.optimum(budget) for name, law in _PUBLISHED.items()}
        cells.append(
            (
                f"{budget:.2e}",
                format_count(parameters),
                f"{_far(low)} to {_far(high)}",
                format_count(tokens),
                f"{tokens / parameters:.3g}",
                f"{loss:.3f}",
                *(format_count(size) for size, _ in by.values()),
            )
        )
        records.append(
            {
                "flops": budget,
                "parameters": parameters,
                "parameters_low": low,
                "parameters_high": high,
                "tokens": tokens,
                "loss_nats": loss,
                **{f"{name}_parameters": size for name, (size, _) in by.items()},
                **{f"{name}_tokens": length for name, (_, length) in by.items()},
            }
        )
    return Table(
        "Best N and D for a budget of 6ND",
        ("FLOPs", "N", "95%", "D", "D/N", "loss", "N by Chinchilla", "refitted"),
        tuple(cells),
        tuple(records),
        ("By the closed form of Chinchilla's third approach (its equation 4).",),
    )


def _shapes(found: Findings) -> Table | None:
    if not found.shapes:
        return None
    cells, records, notes = [], [], []
    for group in found.shapes:
        best = min(run.loss for run in group)
        for run in group:
            cells.append(
                (
                    run.name,
                    str(run.layers),
                    str(run.width),
                    f"{run.width / run.layers:.3g}",
                    format_count(run.non_embedding),
                    format_count(run.parameters),
                    f"{run.loss:.4f}",
                    f"{run.loss / best - 1:+.2%}",
                )
            )
            records.append(
                {
                    "run": run.name,
                    "layers": run.layers,
                    "width": run.width,
                    "non_embedding_parameters": run.non_embedding,
                    "parameters": run.parameters,
                    "tokens": run.tokens,
                    "loss_nats": run.loss,
                    "above_best_ratio": run.loss / best - 1,
                }
            )
        ratios = [run.width / run.layers for run in group]
        notes.append(
            f"Over {max(ratios) / min(ratios):.3g} times the ratio of width to depth, loss differs by"
            f" {spread(group):.2%}. Kaplan (figure 5): within 3% from 6 layers of 4,288 to 48 of 1,600."
        )
    return Table(
        "Depth and width at one N without embeddings, one D",
        ("run", "layers", "width", "width/depth", "N without", "N", "loss", "above best"),
        tuple(cells),
        tuple(records),
        tuple(dict.fromkeys(notes)),
    )


def _cells(found: Findings, run: Run) -> tuple[str, ...]:
    ours = found.predicted(run)
    return (
        run.name,
        format_count(run.size(found.counted)),
        format_count(run.tokens),
        f"{found.compute(run):.2e}",
        f"{run.loss:.4f}",
        f"{ours:.4f}",
        f"{ours / run.loss - 1:+.2%}".replace("-", "−"),
    )


def _record(found: Findings, run: Run) -> dict[str, str | float]:
    ours = found.predicted(run)
    return {
        "run": run.name,
        "parameters": run.parameters,
        "non_embedding_parameters": run.non_embedding,
        "tokens": run.tokens,
        "flops": found.compute(run),
        "loss_nats": run.loss,
        "fitted_loss_nats": ours,
        "off_ratio": ours / run.loss - 1,
    }


def _far(count: float) -> str:
    """A count that may be far from any there is."""
    return "under 1" if count < 1 else format_count(count) if count < 1e15 else f"{count:.0e}"
