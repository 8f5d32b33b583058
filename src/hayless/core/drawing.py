"""How pictures look: colours, fonts, and figures as bytes. Matplotlib's objects are only used, never made here."""

from __future__ import annotations

import io
from typing import Any, Literal

INK, MUTED, RULE, BLUE, ORANGE = "#1c1b19", "#6b6963", "#d9d6cf", "#0b5c9e", "#b5490b"
"""Colours that stay apart for colour-blind readers and in grey; shape carries the meaning as well."""

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hayless",
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}

Form = Literal["svg", "png"]


_MARKERS = "os^DvPX*"


def line(number: int) -> dict[str, Any]:
    """How the line of this number looks: colour and marker together tell it from the others."""
    colour = (BLUE, ORANGE, INK, MUTED)[number % 4]
    return {
        "color": colour,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1,
        "clip_on": False,
    }


def plain(axes: Any) -> None:
    """Leave matplotlib axes their bottom line and their labels."""
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=8)


def save(figure: Any, form: Form) -> bytes:
    """A matplotlib figure as bytes, without the date, so that equal figures are equal files."""
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=160, metadata={"Date": None} if form == "svg" else {"Software": None})
    return out.getvalue()
