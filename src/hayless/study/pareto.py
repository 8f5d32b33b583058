"""The Pareto front of a study, as a picture: which runs no other run beats on both axes.

A filled dot is measured, a hollow one predicted, with a line between them. Shape and labels carry the meaning as well
as colour. No torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hayless.core import atomic
from hayless.core.drawing import BLUE, INK, MUTED, RULE, STYLE, save
from hayless.core.errors import RequestError
from hayless.recipe.figures import TITLES, title, unit_of, written
from hayless.recipe.receipt_picture import shortened
from hayless.study.record import RunRecord
from hayless.study.table import HIGHER_IS_BETTER, QUALITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_MOST_LABELS = 40


@dataclass(frozen=True, slots=True)
class Point:
    """A run on two axes: measured, and predicted where at least one of the two was."""

    label: str
    x: float
    y: float
    predicted: tuple[float, float] | None = None


def points(records: Sequence[RunRecord], x: str, y: str) -> list[Point]:
    """The runs that are done and have both figures measured."""
    found = []
    for record in records:
        across, up = record.receipt.figure(x), record.receipt.figure(y)
        if record.failed or across is None or up is None or across.value is None or up.value is None:
            continue
        predicted = None
        if across.predicted is not None or up.predicted is not None:
            predicted = (
                across.value if across.predicted is None else across.predicted,
                up.value if up.predicted is None else up.predicted,
            )
        found.append(Point(record.label, across.value, up.value, predicted))
    return found


def front(found: Sequence[Point], *, higher_x: bool = False, higher_y: bool = False) -> list[Point]:
    """The points that no other beats on both axes, by x; lower is better unless said otherwise.

    Of points that are equal on both axes all are kept.
    """
    side, rise = -1 if higher_x else 1, -1 if higher_y else 1

    def beaten(point: Point) -> bool:
        x, y = side * point.x, rise * point.y
        return any(
            side * other.x <= x and rise * other.y <= y and (side * other.x, rise * other.y) != (x, y)
            for other in found
        )

    return sorted((point for point in found if not beaten(point)), key=lambda point: (point.x, point.y))


def write(records: Sequence[RunRecord], out: Path, x: str = "file_bytes", y: str = QUALITY) -> None:
    """Draw the front into `out`, a .png or .svg. RequestError when no run has both figures."""
    form = out.suffix.lstrip(".").lower()
    if form not in ("png", "svg"):
        raise RequestError(f"{out} is not possible; allowed: a name that ends in .png or .svg.")
    atomic.write_bytes(out, draw(records, x, y, "svg" if form == "svg" else "png"))


def draw(
    records: Sequence[RunRecord], x: str = "file_bytes", y: str = QUALITY, form: Literal["png", "svg"] = "png"
) -> bytes:
    """The picture as bytes; the same runs give the same bytes. RequestError when no run has both figures."""
    found = points(records, x, y)
    if not found:
        raise RequestError(
            f"No finished run has both {x} and {y}.", hint=f"Measured figures are among: {', '.join(TITLES)}."
        )
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "font.size": 10}):
        figure = Figure(figsize=(8.4, 5.4), facecolor="white", layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _axes(axes, found, x, y)
        best = front(found, higher_x=x in HIGHER_IS_BETTER, higher_y=y in HIGHER_IS_BETTER)
        axes.plot([p.x for p in best], [p.y for p in best], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for point in found:
            _mark(axes, point, on_front=point in best)
        _legend(figure, predicted=any(point.predicted for point in found))
        figure.draw_without_rendering()
        _label(canvas.get_renderer(), axes, found, best)
        return save(figure, form)


def _axes(axes: Axes, found: Sequence[Point], x: str, y: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name, axis, values in (
        (x, axes.xaxis, [p.x for p in found] + [p.predicted[0] for p in found if p.predicted]),
        (y, axes.yaxis, [p.y for p in found] + [p.predicted[1] for p in found if p.predicted]),
    ):
        if min(values) > 0 and max(values) / min(values) > 8:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(NullFormatter())
        better = "higher" if name in HIGHER_IS_BETTER else "lower"
        unit = "" if name == QUALITY else unit_of(name)
        axis.set_label_text(f"{title(name)}{f', {unit}' if unit else ''} ({better} is better)")
        axis.set_major_formatter(FuncFormatter(lambda v, _, n=name: written(n, v).removesuffix(unit_of(n)).strip()))
    axes.margins(0.12)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)


def _mark(axes: Axes, point: Point, *, on_front: bool) -> None:
    color = BLUE if on_front else MUTED
    if point.predicted:
        axes.plot([point.predicted[0], point.x], [point.predicted[1], point.y], color=color, linewidth=1.2, zorder=2)
        axes.plot(
            *([value] for value in point.predicted), "o", markersize=10, mec=color, mfc="white", mew=1.3, zorder=3
        )
    axes.plot([point.x], [point.y], "o", markersize=6, color=color, zorder=4)


def _legend(figure: Figure, *, predicted: bool) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", markersize=6, color=BLUE, linestyle="none", label="measured, on the front"),
        Line2D([], [], marker="o", markersize=6, color=MUTED, linestyle="none", label="measured"),
    ]
    if predicted:
        marks.append(
            Line2D([], [], marker="o", markersize=10, color=MUTED, markerfacecolor="white", mew=1.3, label="predicted")
        )
    figure.legend(handles=marks, loc="outside upper left", ncols=3, frameon=False, fontsize=9)


def _label(renderer: RendererAgg, axes: Axes, found: Sequence[Point], best: Sequence[Point]) -> None:
    """Name the points, those on the front first; leave out a name that would cover a mark, the line or another name."""
    from matplotlib.text import Text

    marks = [axes.transData.transform(p) for point in found for p in ((point.x, point.y), point.predicted) if p]
    ends = [axes.transData.transform((point.x, point.y)) for point in best]
    for start, end in itertools.pairwise(ends):
        pieces = math.ceil(math.dist(start, end) / 10)
        marks += [start + (end - start) * part / pieces for part in range(1, pieces)]
    taken: list[Bbox] = []
    frame = axes.figure.bbox
    offsets = [
        (radius * math.cos(angle), radius * math.sin(angle))
        for radius in (9, 14, 20, 28, 38)
        for angle in (0.5, 2.6, -0.5, -2.6, 1.57, -1.57, 0, 3.14)
    ]
    for point in sorted(found, key=lambda point: point not in best)[:_MOST_LABELS]:
        for across, up in offsets:
            side = "center" if abs(across) < 3 else "left" if across > 0 else "right"
            text = axes.annotate(
                shortened(point.label, 32),
                (point.x, point.y),
                xytext=(across, up),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=9,
                color=INK if point in best else MUTED,
                arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.8} if across**2 + up**2 > 260 else None,
                annotation_clip=False,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(2)  # the words alone, without the line to the point
            clear = not any(box.overlaps(other) for other in taken)
            clear = clear and not any(box.padded(5).contains(*mark) for mark in marks)
            if clear and frame.x0 < box.x0 and box.x1 < frame.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1:
                taken.append(box)
                break
            text.remove()
