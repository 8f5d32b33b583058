"""`hayless plan --memory`: the ways to train or run a model that fit, those that do not, and a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hayless.cli.output import emit, out
from hayless.cli.output import table as show_table
from hayless.cli.plan_tables import show_tables
from hayless.core.errors import RequestError
from hayless.core.units import format_bytes, parse_bytes
from hayless.plan.memory import dims_from, needed, usual_sequence
from hayless.plan.picture import CAUSES
from hayless.plan.running import Running, advise_running, packing_recipe
from hayless.recipe.figures import number

if TYPE_CHECKING:
    from hayless.core.devices import Device
    from hayless.plan.recommend import Advice, Choice

DATA = "texts/"
"""Training text of a recipe where none is named."""
ROWS = 32
"""Rows of an update where none are asked for."""
SPARES = 0.95
"""A way that gives up more and does not fit is shown where it needs less than this share of one that gives up less."""


def recommend(
    model: str,
    preset: str,
    on: Device,
    budget: str,
    gpus: int,
    batch: int | None,
    seq: int | None,
    tokens: int,
    data: str,
    write: str,
    json: bool,
) -> None:
    """Ways to train in a budget of memory, best first, and the first as a recipe; without tokens, ways to run."""
    from hayless.core.atomic import write_text
    from hayless.plan import cluster_tables, recommend
    from hayless.recipe import yaml

    dims, before = dims_from(model, preset)
    on = recommend.budgeted(on, parse_bytes(budget))
    if not tokens:
        if gpus != 1 or data != DATA:
            raise RequestError("Training needs --data-tokens.", hint="Say how many tokens to train on, such as 100M.")
        found = advise_running(dims, before, on, batch=1 if batch is None else batch, context=seq)
        show_running(found, model, preset, write, json)
        return
    rows = ROWS if batch is None else batch
    sequence = usual_sequence(dims) if seq is None else seq
    advice = recommend.advise(dims, before, on, batch=rows, sequence=sequence, tokens=tokens, shorten=seq is None)
    notes = [f"Times are those of one {on.name} ({on.source}); its memory is taken as {format_bytes(on.memory_bytes)}."]
    shared = None
    if gpus != 1:
        # Where a weight is moved as soon as its gradient is there, no gradients can be summed between GPUs.
        telling = _telling((*advice.others, *advice.fitting))
        ways = dict.fromkeys(choice.way for choice in telling if not choice.way.fused)
        shared = cluster_tables.sharing(list(ways), on, gpus, rows, sequence)
    content = None
    if write or advice.fitting or not (shared and any(row["fits"] for row in shared.records)):
        content = recommend.recipe(advice.best, model, preset, data, tokens)
    if write and content:
        write_text(Path(write), yaml.write(content))
    if json:
        emit({**advice.to_json(), "recipe": content, "shared": shared.to_json() if shared else None, "notes": notes})
        return
    show_advice(advice, format_bytes(on.memory_bytes))
    if shared:
        show_tables([shared], json)
    out.print("\n".join(notes), markup=False)
    if write:
        out.print(f"The first is in {write}; look at it with: hayless run {write} --dry-run", markup=False)
    elif content:
        out.print("\nThe first as a recipe (--write FILE saves it):", style="bold")
        out.print(yaml.write(content), markup=False)


def show_running(found: Sequence[Running], model: str, preset: str, write: str, json: bool) -> None:
    """Ways to run a model; the first that packs it and fits as a recipe, where it does not fit as it is."""
    from hayless.core.atomic import write_text
    from hayless.recipe import yaml

    first = next(each for each in found if each.fits)
    content = None if not first.transforms else packing_recipe(first, model, preset)
    if write:
        if content is None:
            raise RequestError("The model fits as it is: there is nothing to do to it, and no recipe to write.")
        write_text(Path(write), yaml.write(content))
    if json:
        emit({"running": [each.to_json() for each in found], "recipe": content})
        return
    rows = []
    for each in found:
        plain = each.to_json()
        verdict = f"yes, {format_bytes(plain['left_bytes'])} left" if each.fits else "no"
        size = [format_bytes(plain["weights_bytes"]), format_bytes(each.needed_bytes)]
        speed = [number(each.reading_rate), f"{plain['ms_per_token']:.2f}"]
        rows.append([each.name, f"{each.batch} × {each.context:,}", *size, *speed, verdict])
    device = first.plan.device
    out.print(f"Run in {format_bytes(device.memory_bytes)} on {device.name}", style="bold")
    show_table(["", "context", "weights", "needs", "read/s", "ms/token", "fits"], rows, right=6)
    fit = [each for each in found if each.fits]
    reader = max(fit, key=lambda each: each.reading_rate)
    writer = min(fit, key=lambda each: each.to_json()["ms_per_token"] / each.batch)
    out.print(f"By prediction, {reader.name} reads prompts fastest and {writer.name} answers fastest.", markup=False)
    out.print("For ways to train, say on how many tokens: --data-tokens 100M.", style="dim")
    if content and not write:
        out.print("\nPacked by this recipe (--write FILE saves it):", style="bold")
        out.print(yaml.write(content), markup=False)


def show_advice(advice: Advice, memory: str) -> None:
    """Ways that fit in so much memory, best first, and those that do not and why."""
    rows = []
    for choice in advice.fitting:
        found = choice.to_json(advice.tokens)
        rows.append(
            [
                choice.name,
                f"{choice.accumulation} × {choice.micro_batch} × {choice.sequence:,}",
                format_bytes(choice.needed_bytes),
                format_bytes(found["left_bytes"]),
                number(found["tokens_per_second"]),
                number(found["gpu_hours"]),
                "; ".join(choice.gives_up),
            ]
        )
    if rows:
        out.print(f"Fits in {memory}, best first", style="bold")
        show_table(["", "update", "needs", "left", "tokens/s", "GPU-hours", "gives up"], rows)
    if advice.others:
        out.print(f"Does not fit in {memory}, not even one row at once", style="bold")
        show_table(["", "needs", "most of it"], [_why_not(choice) for choice in _telling(advice.others)])
    for name, reason in advice.impossible.items():
        out.print(f"{name}: {reason}", markup=False)


def _telling(others: Sequence[Choice]) -> list[Choice]:
    """Ways that do not fit, without those that give up more than another for next to nothing."""
    return [
        choice
        for choice in others
        if not any(
            set(other.gives_up) < set(choice.gives_up) and choice.needed_bytes > SPARES * other.needed_bytes
            for other in others
        )
    ]


def _why_not(choice: Choice) -> list[str]:
    """A way that does not fit: what it needs, and the three causes that take most."""
    assert choice.plan.train
    held = needed(choice.plan.train.peak)
    most = sorted(CAUSES, key=lambda cause: -held[cause])[:3]
    causes = ", ".join(f"{CAUSES[cause][0]} {format_bytes(held[cause])}" for cause in most)
    return [choice.name, format_bytes(choice.needed_bytes), causes]
