"""Who drafts in a captured graph: another model, the model's own first layers, or the text itself.

Everything that a pass knows of its rows lies on the device. Shapes: b rows, k drafted tokens, s = k + 1 positions, v
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hayless.decode.cache import StaticCache
from hayless.decode.graphs import PREFILL_TOKENS, Choice
from hayless.decode.kernel_pass import KernelPass
from hayless.decode.program import Program
from hayless.decode.sampling import RowOptions, invert
from hayless.kernels.choose import likeliest
from hayless.kernels.drafted import lookup
from hayless.methods.decoding.speculative.drafts import fitted
from hayless.methods.decoding.speculative.rounds import DRAW


@dataclass(frozen=True, slots=True)
class Ngram:
    """Drafts are looked up in the text, by so many last tokens at most."""

    longest: int


@dataclass(frozen=True, slots=True)
class FirstLayers:
    """The model's own first layers draft."""

    count: int


Source = Program | FirstLayers | Ngram
"""Who drafts: another model, or one of these."""


class Rows:
    """What a pass knows of its rows, on the device."""

    def __init__(self, rows: int, count: int, capacity: int, device: torch.device) -> None:
        def whole(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.count = count
        self.lengths_b, self.active_b, self.places_b = whole(rows), whole(rows), whole(rows)
        self.tokens_bs = whole(rows, count + 1, dtype=torch.long)
        """The last token of each text, and the drafted ones."""
        self.fed_b2 = whole(rows, 2, dtype=torch.long)
        """The last two tokens of each text."""
        self.options = RowOptions(rows, device)
        self.checked_options = RowOptions(rows * (count + 1), device)
        self.numbers_bcn = whole(rows, 3, capacity, dtype=torch.float64)
        self.text_bn = whole(rows, capacity, dtype=torch.long)

    def random(self, which: int, place: int, count: int) -> Tensor:
        """Numbers (b, count) for the tokens from `place` on, counted from where each text ends."""
        last = self.numbers_bcn.shape[2] - 1
        at_bk = (self.places_b[:, None] + torch.arange(place, place + count, device=self.places_b.device)).clamp(
            max=last
        )
        return self.numbers_bcn[:, which].gather(1, at_bk)


class Drafter(Protocol):
    """Fills in the drafted tokens."""

    @property
    def probs_bkv(self) -> Tensor | None:
        """The probabilities that they were drawn from; None where there was no choice."""

    def join(self, texts: Sequence[Sequence[int]], first: int) -> None:
        """Read these texts, without their last token, into rows from `first` on."""

    def launch(self, rows: Rows, choice: Choice) -> None:
        """Draft."""


class ProgramDrafter:
    """Another model, over a cache of its own. Its first step of a pass also reads the token before the last, which it
    has not read where all that it drafted was kept."""

    def __init__(self, program: Program, rows: Rows, capacity: int, entries: int) -> None:
        batch = len(rows.lengths_b)
        self._cache = StaticCache(program.dims, batch, capacity, program.dtype, program.device)
        self._first = KernelPass(program, self._cache, rows.lengths_b, positions=2, last=True)
        self._next = KernelPass(program, self._cache, rows.lengths_b)
        self._choose = _Choose(rows, entries)
        self._entries = entries

    @property
    def probs_bkv(self) -> Tensor | None:
        """The probabilities that the tokens were drawn from."""
        return self._choose.probs_bkv

    def join(self, texts: Sequence[Sequence[int]], first: int) -> None:
        """Read these texts, without their last token, into rows from `first` on."""
        known = self._next.program.dims.vocab_size
        prefill(self._next.program, self._cache, [[min(token, known - 1) for token in text] for text in texts], first)

    def launch(self, rows: Rows, choice: Choice) -> None:
        """Draft."""
        for place in range(rows.count):
            run = self._next if place else self._first
            tokens = rows.tokens_bs[:, place] if place else rows.fed_b2.flatten()
            if run.program.dims.vocab_size < self._entries:
                tokens = tokens.clamp(max=run.program.dims.vocab_size - 1)
            self._choose(run.launch(tokens, place or -1), place, choice, overlap=run.overlap)


class EarlyDrafter:
    """The model's own first layers, over the model's own cache."""

    def __init__(self, program: Program, rows: Rows, target_cache: StaticCache) -> None:
        self._next = KernelPass(program, target_cache, rows.lengths_b)
        self._choose = _Choose(rows, program.dims.vocab_size)

    @property
    def probs_bkv(self) -> Tensor | None:
        """The probabilities that the tokens were drawn from."""
        return self._choose.probs_bkv

    def join(self, texts: Sequence[Sequence[int]], first: int) -> None:
        """Nothing: the target's cache has it all."""

    def launch(self, rows: Rows, choice: Choice) -> None:
        """Draft."""
        for place in range(rows.count):
            logits_bv = self._next.launch(rows.tokens_bs[:, place], place)
            self._choose(logits_bv, place, choice, overlap=self._next.overlap)


class LookupDrafter:
    """What followed the last tokens where they stood before in the text."""

    probs_bkv = None

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram

    def join(self, texts: Sequence[Sequence[int]], first: int) -> None:
        """Nothing to be read."""

    def launch(self, rows: Rows, choice: Choice) -> None:
        """Draft."""
        lookup(rows.text_bn, rows.lengths_b, rows.tokens_bs[:, 1:], self._ngram)


class _Choose:
    """Draws drafted tokens from logits."""

    def __init__(self, rows: Rows, entries: int) -> None:
        self._rows, self._entries = rows, entries
        self._unused_b = torch.zeros(len(rows.lengths_b), dtype=torch.float32, device=rows.lengths_b.device)
        self._probs: list[Tensor] = []

    @property
    def probs_bkv(self) -> Tensor | None:
        return torch.stack(self._probs, 1) if self._probs else None

    def __call__(self, logits_bv: Tensor, place: int, choice: Choice, *, overlap: bool) -> None:
        if place == 0:
            self._probs = []
        rows, logits_bv = self._rows, fitted(logits_bv, self._entries)
        tokens_b = rows.tokens_bs[:, place + 1]
        if choice == "greedy":
            likeliest(logits_bv, tokens_b, self._unused_b, overlap=overlap)
            return
        probs_bv = rows.options.distribution(logits_bv, sort=choice == "filtered")
        self._probs.append(probs_bv)
        tokens_b.copy_(invert(probs_bv, rows.random(DRAW, place, 1)[:, 0]))


def prefill(program: Program, cache: StaticCache, texts: Sequence[Sequence[int]], first: int) -> None:
    """Put texts, but for their last tokens, into the rows of a cache from `first` on."""
    if any(len(text) > 1 for text in texts):
        view = cache.rows(first, first + len(texts))
        program.prefill([list(text[:-1]) for text in texts], view, max(64, PREFILL_TOKENS // len(texts)))
