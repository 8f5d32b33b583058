"""What `hayless plan` prints of a model: its plans side by side, and the ways to train it that fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from hayless.cli.output import out
from hayless.cli.output import table as show_table
from hayless.core.atomic import write_bytes
from hayless.core.units import format_bytes, format_count, format_seconds
from hayless.plan.memory import Plan, needed, spent
from hayless.plan.picture import CAUSES, draw, terminal
from hayless.plan.recommend import Advice, Choice
from hayless.recipe import yaml
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
    out.print("Times are a roofline's: a bound that is not yet compared with measurements.", style="dim")


def show_advice(advice: Advice, recipe: dict[str, Any], notes: Sequence[str], written: str) -> None:
    """Ways that fit, best first, those that do not and why, and the first as a recipe where it was not written."""
    memory = advice.fitting[0].plan.device.memory_bytes
    rows = []
    for choice in advice.fitting:
        found = choice.to_json(advice.tokens)
        rows.append(
            [
                choice.name,
                f"{choice.accumulation} × {choice.micro_batch}",
                format_bytes(choice.needed_bytes),
                format_bytes(found["left_bytes"]),
                number(found["tokens_per_second"]),
                number(found["gpu_hours"]),
                choice.gives_up,
            ]
        )
    out.print(f"Fits in {format_bytes(memory)}, best first", style="bold")
    show_table(["", "update", "needs", "left", "tokens/s", "GPU-hours", "gives up"], rows)
    if advice.others:
        out.print("Does not fit, not even one row at once", style="bold")
        show_table(["", "needs", "most of it"], [_why_not(choice) for choice in advice.others])
    out.print("\n".join(notes), markup=False)
    if written:
        out.print(f"The first is in {written}; look at it with: hayless run {written} --dry-run", markup=False)
    else:
        out.print("\nThe first as a recipe (--write FILE saves it):", style="bold")
        out.print(yaml.write(recipe), markup=False)


def _why_not(choice: Choice) -> list[str]:
    """A way that does not fit: what it needs, and the three causes that take most."""

    assert choice.plan.train
    held = needed(choice.plan.train.peak)
    most = sorted(CAUSES, key=lambda cause: -held[cause])[:3]
    causes = ", ".join(f"{CAUSES[cause][0]} {format_bytes(held[cause])}" for cause in most)
    return [choice.name, format_bytes(choice.needed_bytes), causes]


def _verdict(plan: Plan) -> str:

    left = plan.device.memory_bytes - max(needed(cost.peak)["total"] for cost in plan.costs.values())
    return f"yes, {format_bytes(left)} left" if left >= 0 else f"no, {format_bytes(-left)} short"


def picture(plans: Sequence[Plan], title: str, file: str) -> None:
    """Draw plans into a .png or .svg file."""

    form = Path(file).suffix.removeprefix(".")
    if form not in ("png", "svg"):
        raise typer.BadParameter("ends in .png or .svg", param_hint="--out")
    write_bytes(Path(file), draw(plans, title, "png" if form == "png" else "svg"))
