"""A sweep as a picture: loss against N, D and C = 6ND with the law's lines and the published ones, and the shapes.

Filled dots are measured. The run that was held out has a hollow dot where it was predicted and a line between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hayless.core.drawing import BLUE, INK, MUTED, ORANGE, RULE, STYLE, Form, plain, save
from hayless.core.units import format_count
from hayless.plan.scaling import CHINCHILLA, KAPLAN, PF_DAY, REFIT, Parametric
from hayless.plan.sweep.findings import Findings
from hayless.plan.sweep.runs import Run

_LINES = 60
_BEYOND = 3
"""By what factor lines go on beyond the runs, either way."""
_ROOM = 0.04
"""Share of the loss that the label of a line takes."""
_PUBLISHED = {"Kaplan": (0, (1, 2)), "Chinchilla": (0, (6, 3)), "Chinchilla, refitted": (0, (6, 2, 1, 2))}
"""Law → how its line is dashed."""

Curve = Callable[[float], float]


def draw(found: Findings, title: str, form: Form) -> bytes:
    """The four panels as a file's bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(2, 2, figsize=(10, 7.6), layout="constrained")
        (by_size, by_tokens), (by_compute, by_shape) = panels
        _panel(
            by_size,
            found,
            f"N, {found.counted} parameters",
            lambda run: run.size(found.counted),
            {
                "Kaplan": KAPLAN["N"].loss,
                "Chinchilla": _without_limit_of_tokens(CHINCHILLA),
                "Chinchilla, refitted": _without_limit_of_tokens(REFIT),
            },
        )
        _slices(by_size, found, [run.tokens for run in found.runs], lambda law, x, other: law.loss(x, other), "tokens")
        _panel(
            by_tokens,
            found,
            "D, tokens trained on",
            lambda run: run.tokens,
            {
                "Kaplan": KAPLAN["D"].loss,
                "Chinchilla": _without_limit_of_size(CHINCHILLA),
                "Chinchilla, refitted": _without_limit_of_size(REFIT),
            },
        )
        sizes = [run.size(found.counted) for run in found.runs]
        _slices(by_tokens, found, sizes, lambda law, x, other: law.loss(other, x), "parameters")
        _panel(
            by_compute,
            found,
            "C = 6ND, FLOPs",
            found.compute,
            {
                "Kaplan": lambda compute: KAPLAN["C"].loss(compute / PF_DAY),
                "Chinchilla": _frontier(CHINCHILLA),
                "Chinchilla, refitted": _frontier(REFIT),
            },
        )
        across = _span(found, found.compute)
        by_compute.plot(across, [_frontier(found.law)(x) for x in across], color=BLUE, linewidth=1.6)
        _shapes(by_shape, found)
        handles = [
            pyplot.Line2D([], [], color=INK, marker="o", linestyle="", markersize=4, label="measured"),
            pyplot.Line2D([], [], color=BLUE, linewidth=1.6, label="fitted; against C, at the best N and D"),
            *(pyplot.Line2D([], [], color=MUTED, linestyle=dash, label=name) for name, dash in _PUBLISHED.items()),
        ]
        if found.held_out is not None:
            handles += [
                pyplot.Line2D([], [], color=ORANGE, marker="o", linestyle="", label=f"held out: {found.held_out.name}"),
                pyplot.Line2D(
                    [], [], color=ORANGE, marker="o", markerfacecolor="white", linestyle="", label="predicted"
                ),
            ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        note = "Published laws are of other text and tokens, and know no limit but what is on the axis: compare slopes."
        figure.suptitle(f"{title}: L = {found.law.formula()}\n{note}", x=0.01, ha="left", fontsize=9)
        content = save(figure, form)
        pyplot.close(figure)
    return content


def _panel(axes: Any, found: Findings, label: str, place: Callable[[Run], float], published: dict[str, Curve]) -> None:
    """Axes with the runs and the published lines."""
    across = _span(found, place)
    for name, curve in published.items():
        axes.plot(across, [curve(x) for x in across], color=MUTED, linewidth=1, linestyle=_PUBLISHED[name])
    axes.plot([place(run) for run in found.runs], [run.loss for run in found.runs], "o", color=INK, markersize=4)
    if found.held_out is not None:
        x, measured, predicted = place(found.held_out), found.held_out.loss, found.predicted(found.held_out)
        axes.plot([x, x], [measured, predicted], color=ORANGE, linewidth=1)
        axes.plot([x], [predicted], "o", color=ORANGE, markerfacecolor="white", markersize=6)
        axes.plot([x], [measured], "o", color=ORANGE, markersize=5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    losses = [run.loss for run in found.runs]
    axes.set_ylim(min(losses) / 1.4, max(losses) * 3)
    _plain_numbers(axes)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axes.set_xlabel(label)
    axes.set_ylabel("loss, nats a token")
    axes.grid(color=RULE, linewidth=0.5)
    plain(axes)


def _slices(
    axes: Any, found: Findings, values: Sequence[int], loss: Callable[[Parametric, float, float], float], unit: str
) -> None:
    """A line of the law for each value of what is not on the axis, with the value at its end."""
    low, high = axes.get_xlim()
    across = _between(low, high)
    labelled = 0.0
    for value in _apart(values):
        line = [loss(found.law, x, value) for x in across]
        axes.plot(across, line, color=BLUE, linewidth=0.8)
        if abs(line[-1] / (labelled or 1) - 1) < _ROOM:
            continue
        labelled = line[-1]
        axes.annotate(
            f" {format_count(value)}", (high, labelled), color=BLUE, fontsize=7, va="center", annotation_clip=False
        )
    axes.set_xlim(low, high)
    axes.set_title(f"blue: the law at equal {unit}", loc="left", fontsize=8, color=MUTED)


def _shapes(axes: Any, found: Findings) -> None:
    """Loss against width/depth, a line for each group of runs of one N without embeddings and one D."""
    for group in found.shapes:
        ratios = [run.width / run.layers for run in group]
        axes.plot(ratios, [run.loss for run in group], "o-", color=INK, linewidth=1, markersize=4)
        for run, ratio in zip(group, ratios, strict=True):
            axes.annotate(
                f"{run.layers} × {run.width}", (ratio, run.loss), textcoords="offset points", xytext=(0, 7), ha="center"
            )
    axes.set_xlabel("width / depth at one N without embeddings, one D")
    axes.set_ylabel("loss, nats a token")
    if found.shapes:
        axes.set_xscale("log")
        axes.set_yscale("log")
        # The scale of the other panels: what looks flat here is flat beside what N and D do.
        losses = [run.loss for run in found.runs]
        axes.set_ylim(min(losses) / 1.1, max(losses) * 1.1)
        axes.margins(x=0.3)
        _plain_numbers(axes)
        ratios = sorted({run.width / run.layers for group in found.shapes for run in group})
        axes.set_xticks(ratios, [f"{ratio:.3g}" for ratio in ratios])
        axes.set_xticks([], minor=True)
    else:
        axes.text(0.5, 0.5, "no runs that differ in shape alone", ha="center", transform=axes.transAxes, color=MUTED)
    axes.grid(color=RULE, linewidth=0.5)
    plain(axes)


def _plain_numbers(axes: Any) -> None:
    """Losses as people write them, with enough of them on a logarithmic axis."""
    from matplotlib.ticker import LogLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(LogLocator(base=10, subs=()))


def _span(found: Findings, place: Callable[[Run], float]) -> list[float]:
    runs = [*found.runs, *filter(None, [found.held_out])]
    places = [place(run) for run in runs]
    return _between(min(places) / _BEYOND, max(places) * _BEYOND)


def _between(low: float, high: float) -> list[float]:
    """Evenly spaced on a logarithmic axis."""
    return [low * (high / low) ** (step / _LINES) for step in range(_LINES + 1)]


def _apart(values: Sequence[int]) -> list[int]:
    """The values that are more than a tenth from the one before."""
    kept: list[int] = []
    for value in sorted(values):
        if not kept or value > 1.1 * kept[-1]:
            kept.append(value)
    return kept


def _without_limit_of_tokens(law: Parametric) -> Curve:
    return lambda parameters: law.loss(parameters, float("inf"))


def _without_limit_of_size(law: Parametric) -> Curve:
    return lambda tokens: law.loss(float("inf"), tokens)


def _frontier(law: Parametric) -> Curve:
    """The least loss for a budget."""
    return lambda compute: law.loss(*law.optimum(compute))
