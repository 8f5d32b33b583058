"""What `hayless plan --memory` prints: the ways to train a model that fit, those that do not, and a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hayless.cli.output import out
from hayless.cli.output import table as show_table
from hayless.core.units import format_bytes
from hayless.plan.memory import needed
from hayless.plan.picture import CAUSES
from hayless.plan.recommend import Advice, Choice
from hayless.recipe import yaml
from hayless.recipe.figures import number


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
