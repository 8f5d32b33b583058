"""The picture of a receipt: each figure on one scale of ratios, hollow where predicted, filled where measured.

The scale is the ratio to the measured figure (logarithmic), so bytes, seconds and joules share an axis and the
distance between the dots is the error of the prediction. A figure without a prediction shows its filled dot alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hayless.core.drawing import BLUE, INK, MUTED, ORANGE, RULE, STYLE, Form, plain, save
from hayless.core.measurement import Measurement
from hayless.recipe.figures import title, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hayless.recipe.receipt import Receipt

_TICKS = (0.01, 0.1, 0.25, 0.5, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 2, 4, 10, 100)
_ROW_INCHES = 0.36


def draw(receipt: Receipt, form: Form) -> bytes:
    """The picture of a receipt that has rows; the same receipt gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        height = _ROW_INCHES * len(receipt.rows) + 1.25
        figure = Figure(figsize=(8.4, height), facecolor="white")
        axes = figure.add_axes((0.64, 0.62 / height, 0.33, 1 - 1.25 / height))
        _scale(axes, receipt.rows)
        for position, row in enumerate(receipt.rows):
            _dots(axes, row, position)
            _text(figure, axes, row, position)
        figure.text(0.02, 1 - 0.28 / height, shortened(receipt.name, 60), weight="bold", size=11, va="center")
        for x, heading in ((0.31, "predicted"), (0.46, "measured"), (0.61, "published")):
            figure.text(x, 1 - 0.52 / height, heading, color=MUTED, ha="right", va="center", size=8)
        figure.text(
            0.805, 1 - 0.52 / height, "ratio to the measured figure", color=MUTED, ha="center", va="center", size=8
        )
        _legend(figure, height)
        return save(figure, form)


def shortened(text: str, length: int) -> str:
    """Text cut to `length` characters, on one line, without control characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def ratio(row: Measurement, value: float | None) -> float | None:
    """value / measured, or None where one is missing or they have no ratio."""
    if value is None or not row.value or value / row.value <= 0:
        return None
    return min(max(value / row.value, 1e-2), 1e2)


def reach(rows: Iterable[Measurement]) -> float:
    """The factor that the scale of a receipt goes to on either side of 1."""
    found = [found for row in rows for value in (row.predicted, row.published) if (found := ratio(row, value))]
    return max([1.1, *(max(item, 1 / item) for item in found)]) * 1.05


def ticks(limit: float, apart: float = 0.12) -> list[float]:
    """Ratios to write under a scale that goes to `limit`, 1 among them, at least a share `apart` of the scale apart."""
    kept = [1.0]
    for tick in sorted(_TICKS, key=lambda tick: abs(math.log(tick))):
        clear = all(abs(math.log(tick / other)) > 2 * apart * math.log(limit) for other in kept)
        if clear and 1 / limit <= tick <= limit:
            kept.append(tick)
    return sorted(kept)


def _scale(axes: Axes, rows: tuple[Measurement, ...]) -> None:
    limit = reach(rows)
    axes.set_xlim(-math.log(limit), math.log(limit))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks([math.log(tick) for tick in ticks(limit)], [f"×{tick:g}" for tick in ticks(limit)])
    axes.set_yticks([])
    plain(axes)
    axes.axvline(0, color=RULE, linewidth=1, zorder=0)


def _dots(axes: Axes, row: Measurement, position: int) -> None:
    predicted, published = ratio(row, row.predicted), ratio(row, row.published)
    if predicted:
        axes.plot([math.log(predicted), 0], [position, position], color=BLUE, linewidth=1.4, zorder=1)
        style: dict[str, Any] = {"markeredgecolor": BLUE, "markerfacecolor": "white", "markeredgewidth": 1.4}
        axes.plot([math.log(predicted)], [position], "o", markersize=9, zorder=2, **style)
    if row.value is not None:
        axes.plot([0], [position], "o", markersize=5.5, color=BLUE, zorder=3)
    if published:
        style = {"markeredgecolor": ORANGE, "markerfacecolor": "none", "markeredgewidth": 1.4}
        axes.plot([math.log(published)], [position], "D", markersize=6, zorder=4, **style)


def _text(figure: Figure, axes: Axes, row: Measurement, position: int) -> None:
    low, high = axes.get_position().y0, axes.get_position().y1
    y = high - (position + 0.5) * (high - low) / (axes.get_ylim()[0] + 0.5)
    figure.text(0.02, y, shortened(title(row.name), 24), va="center")
    cells = ((0.31, row.predicted, "normal"), (0.46, row.value, "bold"), (0.61, row.published, "normal"))
    for x, value, weight in cells:
        text, color = (written(row.name, value, row.unit), INK) if value is not None else ("–", MUTED)
        figure.text(x, y, shortened(text, 19), ha="right", va="center", weight=weight, color=color, size=8.5)


def _legend(figure: Figure, height: float) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D(
            [],
            [],
            marker="o",
            markersize=9,
            color=BLUE,
            markerfacecolor="white",
            markeredgewidth=1.4,
            label="predicted",
        ),
        Line2D([], [], marker="o", markersize=5.5, color=BLUE, linestyle="none", label="measured"),
        Line2D(
            [], [], marker="D", markersize=6, color=ORANGE, markerfacecolor="none", linestyle="none", label="published"
        ),
    ]
    figure.legend(
        handles=marks, loc="lower left", bbox_to_anchor=(0.01, 0.02 / height), ncols=3, frameon=False, fontsize=8
    )
