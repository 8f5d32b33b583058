"""How tokenizers compare: what a token holds, what is unknown, what the vocabulary costs a model, how fast it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from hayless.core import drawing
from hayless.core.errors import RequestError, bad_value
from hayless.data.tokenizer import encode, in_batches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PASSES = 3
_PANELS = (
    ("bytes_per_token", "bytes a token", 1, "{:.2f}"),
    ("unknown_rate", "unknown, % of tokens", 100, "{:.2f}"),
    ("embedding_share", "embeddings, % of weights", 100, "{:.1f}"),
    ("context_bytes", "context, bytes", 1, "{:,.0f}"),
    ("megabytes_per_second", "speed, MB/s", 1, "{:.1f}"),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tokenizer on some texts.

    `unknown_rate` is a share of tokens; `embedding_share` of all parameters; `context_bytes` is what a context of the
    given number of tokens holds on average; `megabytes_per_second` of text, on all cores, is the only figure that
    differs between machines (the median of three passes).
    """

    name: str
    entries: int
    bytes_per_token: float
    unknown_rate: float
    embedding_share: float
    context_bytes: float
    megabytes_per_second: float


def compare(
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    texts: Sequence[str],
    *,
    hidden_size: int,
    body_parameters: int,
    context: int,
    tied: bool = True,
) -> list[Comparison]:
    """How tokenizers differ on `texts`, for a model of `hidden_size` with `body_parameters` outside its embeddings.

    RequestError for sizes below 1, and where the texts are empty.
    """
    for field, value in (("hidden_size", hidden_size), ("body_parameters", body_parameters), ("context", context)):
        if value < 1:
            raise bad_value(field, value, allowed="1 or more")
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise RequestError("There is no text to compare tokenizers on.")
    rows = []
    for name, tokenizer in tokenizers.items():
        tokens, seconds = _timed(tokenizer, texts)
        count = sum(map(len, tokens))
        unknown_id = tokenizer.unk_token_id
        unknowns = sum(ids.count(unknown_id) for ids in tokens) if unknown_id is not None else 0
        embeddings = len(tokenizer) * hidden_size * (1 if tied else 2)
        rows.append(
            Comparison(
                name=name,
                entries=len(tokenizer),
                bytes_per_token=size / count,
                unknown_rate=unknowns / count,
                embedding_share=embeddings / (embeddings + body_parameters),
                context_bytes=context * size / count,
                megabytes_per_second=size / seconds / 1e6,
            )
        )
    return rows


def draw(rows: Sequence[Comparison], form: drawing.Form) -> bytes:
    """The comparison as a picture: one panel a figure, one bar a tokenizer."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(drawing.STYLE):
        height = 0.34 * len(rows) + 0.9
        figure = Figure(figsize=(11, height), facecolor="white")
        panels = figure.subplots(1, len(_PANELS), sharey=True)
        for axes, (field, title, factor, form_of) in zip(panels, _PANELS, strict=True):
            _bars(axes, [factor * getattr(row, field) for row in rows], form_of)
            axes.set_title(title, fontsize=9, color=drawing.INK, loc="left")
        panels[0].set_yticks(range(len(rows)), [f"{row.name} ({row.entries:,})" for row in rows], color=drawing.INK)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        longest = max(len(f"{row.name} ({row.entries:,})") for row in rows)
        figure.subplots_adjust(
            left=min(0.4, 0.02 + 0.0068 * longest), right=0.99, top=1 - 0.5 / height, bottom=0.2 / height, wspace=0.1
        )
        return drawing.save(figure, form)


def _bars(axes: Axes, values: Sequence[float], form_of: str) -> None:
    drawing.plain(axes)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.barh(range(len(values)), values, height=0.55, color=drawing.BLUE)
    limit = max([*values, 1e-9])
    axes.set_xlim(0, 1.45 * limit)
    for position, value in enumerate(values):
        axes.text(value + 0.03 * limit, position, form_of.format(value), va="center", size=8.5)


def _timed(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[list[int]], float]:
    """Tokens of the texts, and the median seconds of a pass over them."""
    seconds = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        tokens = [ids for part in in_batches(texts) for ids in encode(tokenizer, [texts[index] for index in part])]
        seconds.append(time.perf_counter() - started)
    return tokens, statistics.median(seconds)
