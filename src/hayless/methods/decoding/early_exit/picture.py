"""Behind which layer each token left, as a picture: tokens from left to right in lines, layers from below."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hayless.core.drawing import BLUE, MUTED, RULE, STYLE, Form, save

_LINE = 32
"""Tokens of a line."""
_LETTERS = 14
_CELL, _HEIGHT, _LETTER = 0.3, 0.09, 0.06
"""Inches: a token's width, a layer's height, and a letter of the words below."""
_LEFT, _TOP, _GAP = 0.6, 0.65, 0.2


def draw(layers: Sequence[int], tokens: Sequence[str], depth: int, title: str, form: Form) -> bytes:
    """A picture of the layers (of `depth`) that each token went through, over its text."""
    lines = [range(at, min(at + _LINE, len(layers))) for at in range(0, len(layers), _LINE)]
    words = [_shown(token) for token in tokens]
    high, below = max(0.7, depth * _HEIGHT), _GAP + _LETTER * max(map(len, words), default=0)
    width = max(4.5, _LEFT + 0.2 + _CELL * min(_LINE, len(layers)))
    height = _TOP + len(lines) * (high + below)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.text(_LEFT / width, 1 - 0.22 / height, title, fontsize=10, va="center")
        legend = "filled: layers that a token went through; hollow: layers that it skipped"
        figure.text(_LEFT / width, 1 - 0.44 / height, legend, fontsize=7.5, color=MUTED, va="center")
        for number, places in enumerate(lines):
            bottom = height - _TOP - (number + 1) * high - number * below
            axes = figure.add_axes((_LEFT / width, bottom / height, _CELL * len(places) / width, high / height))
            done: list[Rectangle] = []
            skipped: list[Rectangle] = []
            for x, place in enumerate(places):
                for layer in range(depth):
                    cell = Rectangle((x + 0.06, layer + 0.08), 0.88, 0.84)
                    (done if layer < layers[place] else skipped).append(cell)
            axes.add_collection(PatchCollection(done, facecolor=BLUE, linewidth=0))
            axes.add_collection(PatchCollection(skipped, facecolor="none", edgecolor=RULE, linewidth=0.4))
            axes.set(xlim=(0, len(places)), ylim=(0, depth), ylabel="layers" if number == 0 else "")
            axes.set_yticks([0.5, depth - 0.5] if depth > 1 else [0.5], ["1", str(depth)] if depth > 1 else ["1"])
            axes.set_xticks([x + 0.5 for x in range(len(places))], [words[place] for place in places])
            axes.tick_params(axis="x", rotation=90, length=0, labelsize=6.5, labelcolor=MUTED, pad=2)
            axes.tick_params(axis="y", length=0, labelsize=7)
            for spine in axes.spines.values():
                spine.set_visible(False)
        return save(figure, form)


def _shown(token: str) -> str:
    """A token's text in one line; what cannot be seen has a name."""
    text = token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
