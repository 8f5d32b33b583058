"""What `hayless plan` prints of a model: its plans side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from hayless.cli.output import out
from hayless.cli.output import table as show_table
from hayless.core.atomic import write_bytes
from hayless.core.units import format_bytes, format_count, format_seconds
from hayless.plan.memory import VERIFIED, Plan, needed, spent
from hayless.plan.picture import CAUSES, draw, terminal
from hayless.recipe.figures import number


def show_plans(plans: Sequence[Plan], title: str, tokens: int) -> None:
    """One plan by phase, or several by their peaks; bars; speeds, cost and whether each fits."""

    first = plans[0]
    size = f"{format_count(first.ledger.parameters)} parameters"
    out.print(f"{title}: {size}; {first.device.name}, {format_bytes(first.device.memory_bytes)}, {first.device.source}")
    if len(plans) == 1:
        columns = {phase: needed(held) for cost in first.costs.values() for phase, held in cost.phases.items()}
    else:
        columns = {f"{plan.name}: {name}": needed(cost.peak) for plan in plans for name, cost in plan.costs.items()}
    rows = [
        [CAUSES[cause][0], *(format_bytes(held[cause]) if held[cause] else "" for held in columns.values())]
        for cause in CAUSES
        if any(held[cause] for held in columns.values())
    ]
    rows.append(["all", *(format_bytes(held["total"]) for held in columns.values())])
    show_table(["at the peak of", *columns], rows, right=len(columns))
    out.print(terminal(plans, out.width))
    out.print()
    speeds = []
    for plan in plans:
        seconds, rate, decoding = plan.step_seconds(), plan.train_tokens_per_second(), plan.token_seconds()
        cost = spent(plan, tokens) if tokens else {}
        speeds.append(
            [
                plan.name,
                format_count(plan.ledger.trainable),
                format_seconds(seconds) if seconds else "",
                number(rate) if rate else "",
                f"{1e3 * decoding:.2f}" if decoding else "",
                number(cost["gpu_hours"]) if cost else "",
                number(cost["kwh"]) if "kwh" in cost else "",
                _verdict(plan),
            ]
        )
    titles = ["", "trained", "step", "tokens/s", "ms/token decoding", "GPU-hours", "kWh at most", "fits"]
    kept = [place for place in range(len(titles)) if place == 0 or any(row[place] for row in speeds)]
    show_table(
        [titles[place] for place in kept], [[row[place] for place in kept] for row in speeds], right=len(kept) - 1
    )
    for note in dict.fromkeys(note for plan in plans for note in plan.to_json()["notes"]):
        out.print(note, style="dim", markup=False)
    out.print(VERIFIED, style="dim")


def _verdict(plan: Plan) -> str:

    left = plan.device.memory_bytes - max(needed(cost.peak)["total"] for cost in plan.costs.values())
    return f"yes, {format_bytes(left)} left" if left >= 0 else f"no, {format_bytes(-left)} short"


def picture(plans: Sequence[Plan], title: str, file: str) -> None:
    """Draw plans into a .png or .svg file."""

    form = Path(file).suffix.removeprefix(".")
    if form not in ("png", "svg"):
        raise typer.BadParameter("ends in .png or .svg", param_hint="--out")
    write_bytes(Path(file), draw(plans, title, "png" if form == "png" else "svg"))
