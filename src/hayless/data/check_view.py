"""Prepared data to look at: examples token by token, and how long documents are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hayless.core import drawing
from hayless.data.pieces import pieces
from hayless.data.store import TokenStore

MOST_TOKENS = 400
_AT_THE_END = 60
_BINS = 48


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its number, the text it stands for, whether it is learnt, whether it is a special one."""

    id: int
    text: str
    learnt: bool
    special: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A document to look at: its first and its last tokens, and how many between them are not shown."""

    id: str
    domain: str
    length: int
    learnt: int
    head: tuple[Token, ...]
    omitted: int
    tail: tuple[Token, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        tokens = [
            [{"id": token.id, "text": token.text, "learnt": token.learnt} for token in part]
            for part in (self.head, self.tail)
        ]
        return {
            "id": self.id,
            "tokens": self.length,
            "learnt_tokens": self.learnt,
            "first": tokens[0],
            "omitted": self.omitted,
            "last": tokens[1],
        }


def examples(store: TokenStore, tokenizer: PreTrainedTokenizerBase, count: int = 3) -> list[Shown]:
    """The first `count` documents of a store in the order of the hash of their names, which is a fair sample."""
    return [_shown(store, index, tokenizer) for index in store.sampling_order[:count]]


def _shown(store: TokenStore, index: int, tokenizer: PreTrainedTokenizerBase) -> Shown:
    document = store[index]
    count = len(document.tokens)
    cut = count > MOST_TOKENS
    ends = (MOST_TOKENS - _AT_THE_END, count - _AT_THE_END) if cut else (count, count)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def tokens(part: slice) -> tuple[Token, ...]:
        ids = document.tokens[part].tolist()
        texts = pieces(tokenizer, ids)
        marks = document.trained[part].tolist()
        return tuple(
            Token(number, text, learnt, number in special)
            for number, text, learnt in zip(ids, texts, marks, strict=True)
        )

    return Shown(
        id=document.id,
        domain=document.domain,
        length=count,
        learnt=int(document.trained.sum()),
        head=tokens(slice(0, ends[0])),
        omitted=ends[1] - ends[0],
        tail=tokens(slice(ends[1], count)),
    )


def draw_lengths(stores: Sequence[TokenStore], sequence_length: int, form: drawing.Form) -> bytes:
    """How many documents have how many tokens, as a picture, with the sequence length as a line."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    lengths: NDArray[np.int64] = np.concatenate([store.lengths for store in stores])
    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(figsize=(8.4, 3.2), facecolor="white")
        axes = figure.add_axes((0.09, 0.17, 0.88, 0.68))
        drawing.plain(axes)
        low, high = max(1, int(lengths.min())), max(int(lengths.max()), sequence_length) + 1
        edges = np.unique(np.geomspace(low, high + 1, _BINS + 1).astype(np.int64))
        counts, _ = np.histogram(lengths, bins=edges)
        beyond = edges[:-1] > sequence_length
        for chosen, color in ((~beyond, drawing.BLUE), (beyond, drawing.ORANGE)):
            axes.bar(edges[:-1][chosen], counts[chosen], np.diff(edges)[chosen], align="edge", color=color, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max(counts.max(), 1) * 1.15)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("documents")
        axes.set_xlabel("tokens in a document, begin and end included")
        axes.axvline(sequence_length, color=drawing.INK, linewidth=1)
        left = sequence_length > np.sqrt(float(edges[0]) * float(edges[-1]))
        axes.annotate(
            f"sequence length {sequence_length:,}",
            (sequence_length, axes.get_ylim()[1]),
            xytext=(-4 if left else 4, -2),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            size=8.5,
        )
        longer = int((lengths - 1 > sequence_length).sum())
        title = f"{len(lengths):,} documents, median {np.median(lengths):,.0f} tokens, longest {lengths.max():,}"
        axes.set_title(f"{title}; {longer / len(lengths):.1%} longer than the sequence", loc="left", fontsize=9)
        return drawing.save(figure, form)
