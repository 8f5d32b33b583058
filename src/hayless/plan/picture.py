"""Pictures of plans: memory by cause as bars, also in the terminal by glyphs that need no colour; time by GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hayless.core.drawing import BLUE, MUTED, ORANGE, RULE, STYLE, Form, plain, save
from hayless.core.units import format_bytes
from hayless.plan.memory import Plan, needed

if TYPE_CHECKING:
    from hayless.plan.verified import Line

CAUSES: Mapping[str, tuple[str, str, str]] = {
    "weights": ("weights", "█", "#0b5c9e"),
    "gradients": ("gradients", "▓", "#b5490b"),
    "optimizer": ("optimizer state", "▒", "#4d8f3a"),
    "master": ("master weights", "░", "#9cc48f"),
    "activations": ("activations", "▚", "#d9a514"),
    "loss": ("logits and loss", "▞", "#8a4fa3"),
    "kv_cache": ("KV cache", "▤", "#2a9d9a"),
    "temporary": ("temporary", "╱", "#c98b8b"),
    "context": ("CUDA context (allowed)", "∙", "#a5a29a"),
    "slack": ("allocator slack (allowed)", "·", "#d9d6cf"),
}
"""Cause → how it is called, its glyph and its colour."""


def bars(plans: Sequence[Plan]) -> list[tuple[str, dict[str, int]]]:
    """(label, cause → bytes) of the peak of training and of decoding of each plan."""
    return [(f"{plan.name}: {name}", needed(cost.peak)) for plan in plans for name, cost in plan.costs.items()]


def terminal(plans: Sequence[Plan], width: int) -> Any:
    """Bars as rich text, `width` columns for the largest; `|` stands where the device's memory ends."""
    from rich.text import Text

    rows = bars(plans)
    memory = plans[0].device.memory_bytes
    labels = max(len(label) for label, _ in rows)
    room = max(10, width - labels - 14)
    scale = room / max(memory, *(held["total"] for _, held in rows))
    text = Text()
    used: dict[str, None] = {}
    for label, held in rows:
        text.append(f"{label:<{labels}} ")
        drawn, edge, sofar = 0, round(memory * scale), 0.0
        for cause, (_, glyph, colour) in CAUSES.items():
            sofar += held[cause] * scale
            count = round(sofar) - drawn
            if held[cause]:
                used[cause] = None
            text.append(glyph * count, style=colour)
            drawn += count
        text.append(" " * (edge - drawn) + "|" if drawn <= edge else "")
        text.append(f" {format_bytes(held['total'])}\n")
    over = "" if all(held["total"] <= memory for _, held in rows) else "; a bar without | is larger"
    text.append("\n")
    for cause in (cause for cause in CAUSES if cause in used):
        name, glyph, colour = CAUSES[cause]
        text.append(glyph * 2, style=colour)
        text.append(f" {name}   ")
    text.append(f"\n| {plans[0].device.name}: {format_bytes(memory)}{over}")
    return text


def draw(plans: Sequence[Plan], title: str, form: Form) -> bytes:
    """The same bars as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = bars(plans)[::-1]
    memory = plans[0].device.memory_bytes
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 1.6 + 0.42 * len(rows)), layout="constrained")
        for place, (_, held) in enumerate(rows):
            start = 0.0
            for cause, (_, _, colour) in CAUSES.items():
                size = held[cause] / 1e9
                axes.barh(place, size, left=start, color=colour, edgecolor="white", linewidth=0.4, height=0.7)
                start += size
            axes.annotate(f" {format_bytes(held['total'])}", (start, place), va="center", fontsize=8)
        axes.axvline(memory / 1e9, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        most = max(memory, *(held["total"] for _, held in rows)) / 1e9
        axes.set_xlim(0, 1.12 * most)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_xlabel(f"GB at the peak; the dashed line is the {plans[0].device.name}'s memory")
        axes.set_title(title, loc="left", fontsize=10)
        plain(axes)
        shown = [cause for cause in CAUSES if any(held[cause] for _, held in rows)]
        handles = [pyplot.Rectangle((0, 0), 1, 1, color=CAUSES[cause][2]) for cause in shown]
        names = [CAUSES[cause][0] for cause in shown]
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
        found = save(figure, form)
        pyplot.close(figure)
    return found


def draw_times(records: Sequence[Mapping[str, Any]], title: str, form: Form) -> bytes:
    """The minutes a job takes on more and more GPUs: ideally as a line, predicted as hollow dots with utilisations.

    `records` are those of the ideal line's table.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        gpus = [record["gpus"] for record in records]
        axes.plot(gpus, [record["ideal_minutes"] for record in records], color=MUTED, linewidth=1, label="ideally")
        found = [record for record in records if record["predicted_minutes"] is not None]
        points = [record["gpus"] for record in found], [record["predicted_minutes"] for record in found]
        axes.plot(
            *points, "o", color=BLUE, markerfacecolor="white", label="predicted, best split that fits; unverified"
        )
        for record in found:
            place = (record["gpus"], record["predicted_minutes"])
            axes.annotate(
                f"{record['utilisation']:.0%}",
                place,
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(gpus, [f"{count:,}" for count in gpus])
        axes.set_xlabel("GPUs")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_ylabel("minutes")
        axes.set_title(title, loc="left", fontsize=10)
        plain(axes)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
        drawn = save(figure, form)
        pyplot.close(figure)
    return drawn


def draw_verified(lines: Sequence[Line], form: Form) -> bytes:
    """Predicted over measured peaks, and their errors below: circles are trained, squares decoded; crosses are what
    accelerate says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, (above, below) = pyplot.subplots(
            2, 1, figsize=(6.4, 7), height_ratios=(3, 1), sharex=True, layout="constrained"
        )
        for trains, marker, colour, label in ((True, "o", BLUE, "training"), (False, "s", ORANGE, "decoding")):
            peaks = [line.peak for line in lines if line.peak and line.trains == trains]
            if not peaks:
                continue
            measured = [peak.measured / 1e9 for peak in peaks]
            style: dict[str, Any] = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 4}
            above.plot(measured, [peak.predicted / 1e9 for peak in peaks], label=label, **style)
            below.plot(measured, [100 * peak.error for peak in peaks], **style)
        said = [
            (line.peak.measured / 1e9, line.others["accelerate"] / 1e9)
            for line in lines
            if line.peak and "accelerate" in line.others
        ]
        if said:
            above.plot(
                *zip(*said, strict=True),
                linestyle="none",
                marker="x",
                color=MUTED,
                markersize=4,
                label="accelerate estimate-memory",
                zorder=1,
            )
        every = [line.peak.measured / 1e9 for line in lines if line.peak]
        if every:
            ends = [min(every), max(every)]
            above.plot(ends, ends, color=RULE, linewidth=1, zorder=0)
        above.set(xscale="log", yscale="log", ylabel="predicted peak, GB")
        for axis, (least, most) in ((above.xaxis, above.get_xlim()), (above.yaxis, above.get_ylim())):
            ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if least <= tick <= most]
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
        above.legend(frameon=False, fontsize=8)
        below.axhline(0, color=RULE, linewidth=1, zorder=0)
        below.set(xlabel="measured peak, GB", ylabel="error, %")
        for axes in (above, below):
            plain(axes)
        found = save(figure, form)
        pyplot.close(figure)
    return found
