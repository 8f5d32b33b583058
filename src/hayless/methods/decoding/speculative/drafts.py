"""Who drafts, on the host's schedule: another model, the model's own first layers, or the text itself.

A draft sees each row's text so far and proposes tokens for what follows it. Shapes: b rows, k drafted tokens, v entries
of the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import pad

from hayless.decode.readers import ProgramReader, Reader
from hayless.decode.step import Step

_CHUNK = 64

Draw = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
"""From logits (b, v) and the place of a drafted token: tokens (b,), and the probabilities (b, v) they were drawn from,
or None where each is the likeliest."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafted tokens (b, k) and the probabilities (b, k, v) they were drawn from; None where there was no choice.

    `there_b` (b,) says which rows have drafts; None if all. The others' tokens mean nothing.
    """

    tokens_bk: Tensor
    probs_bkv: Tensor | None
    there_b: Tensor | None = None

    def dense(self, entries: int) -> Tensor:
        """The probabilities, written out."""
        if self.probs_bkv is not None:
            return self.probs_bkv
        return F.one_hot(self.tokens_bk, entries).float()


class Draft(Protocol):
    """Proposes tokens."""

    def join(self, texts: Sequence[Sequence[int]]) -> None:
        """Add rows behind those there are, none of them empty."""

    def propose(self, texts: Sequence[Sequence[int]], count: int, draw: Draw) -> Proposal:
        """Up to `count` tokens for what follows each text, as many for each row."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""


class ModelDraft:
    """Another model. It reads a text when it is first asked about it, and what it read of rejected tokens is cut off
    when it is asked again: where nothing is drafted it does nothing.

    It has `known` tokens, the target `entries`: tables may be padded to other sizes.
    """

    def __init__(self, reader: Reader, known: int, entries: int, device: torch.device) -> None:
        self._reader, self._known, self._entries, self._device = reader, known, entries, device

    def join(self, texts: Sequence[Sequence[int]]) -> None:
        """Nothing before it is asked."""

    def propose(self, texts: Sequence[Sequence[int]], count: int, draw: Draw) -> Proposal:
        """`count` tokens for what follows each text."""
        unread = texts[len(self._reader.lengths) :]
        if unread:
            self._reader.join([[min(token, self._known - 1) for token in text[:-1]] for text in unread])
        # The last token of a text is never one that this draft has read: it came from the target.
        behind = max(len(text) - min(held, len(text) - 1) for text, held in self._held(texts))
        starts = [max(0, len(text) - behind) for text in texts]
        self._reader.truncate(starts)
        fed = [list(text[start:]) for text, start in zip(texts, starts, strict=True)]
        # Rows that are shorter than what others lack are padded behind their last token.
        fed_bs = torch.tensor([row + [0] * (behind - len(row)) for row in fed], device=self._device)
        logits_bv = self._behind(fed_bs, [len(row) - 1 for row in fed])
        if any(len(row) < behind for row in fed):
            self._reader.truncate([len(text) for text in texts])
        return drafted(logits_bv, lambda tokens_b1: self._after(tokens_b1)[:, -1], count, draw)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; those that it has read come first."""
        self._reader.select([row for row in rows if row < len(self._reader.lengths)])

    def _behind(self, fed_bs: Tensor, last: Sequence[int]) -> Tensor:
        """Logits (b, v) after each row's `last` place of new tokens, of which there may be many after a rest."""
        found: list[Tensor] = [torch.empty(0)] * len(last)
        for start in range(0, fed_bs.shape[1], _CHUNK):
            logits_bsv = self._after(fed_bs[:, start : start + _CHUNK])
            for row, place in enumerate(last):
                if start <= place < start + _CHUNK:
                    found[row] = logits_bsv[row, place - start]
        return torch.stack(found)

    def _after(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) after new tokens."""
        return fitted(self._reader.read(tokens_bs.clamp(max=self._known - 1)), self._entries)

    def _held(self, texts: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], int]]:
        return list(zip(texts, self._reader.lengths, strict=True))


class EarlyDraft:
    """The model's own first layers, with its last norm and head, over the model's own cache.

    The pass that checks the tokens goes through these layers again and writes the same keys and values there.
    """

    def __init__(self, target: ProgramReader, layers: int) -> None:
        self._target, self._layers = target, layers
        self._program = target.program.first(layers)
        self._cache = copy(target.cache)
        self._step = Step(self._program, self._cache)
        self._share()

    def join(self, texts: Sequence[Sequence[int]]) -> None:
        """Nothing: the target's cache has it all."""

    def propose(self, texts: Sequence[Sequence[int]], count: int, draw: Draw) -> Proposal:
        """`count` tokens for what follows each text."""
        self._target.cache.reserve(count + 1)
        if self._target.cache.k is not self._whole:
            self._share()
        self._cache.lengths = list(self._target.cache.lengths)
        fed_b1 = torch.tensor([text[-1:] for text in texts], device=self._program.device)

        def after(tokens_b1: Tensor) -> Tensor:
            return self._program.logits(self._step(tokens_b1[:, 0]))

        return drafted(after(fed_b1), after, count, draw)

    def _share(self) -> None:
        whole = self._target.cache
        self._whole = whole.k
        self._cache.k, self._cache.v = whole.k[: self._layers], whole.v[: self._layers]

    def select(self, rows: Sequence[int]) -> None:
        """Nothing: the target's cache does."""


class LookupDraft:
    """What followed the last tokens where they stood before in the text; see `lookup`."""

    def __init__(self, ngram: int, device: torch.device) -> None:
        self._ngram, self._device = ngram, device

    def join(self, texts: Sequence[Sequence[int]]) -> None:
        """Nothing to be kept."""

    def propose(self, texts: Sequence[Sequence[int]], count: int, draw: Draw) -> Proposal:
        """`count` tokens for what follows each text; none where no text has its last token twice."""
        found = [lookup(text, count, self._ngram) for text in texts]
        if not any(found):
            count = 0
        tokens = [tokens or list(text[-1:]) * count for tokens, text in zip(found, texts, strict=True)]
        there_b = None if all(found) else torch.tensor([bool(tokens) for tokens in found], device=self._device)
        tokens_bk = torch.tensor(tokens, dtype=torch.long, device=self._device).view(len(texts), count)
        return Proposal(tokens_bk, None, there_b)

    def select(self, rows: Sequence[int]) -> None:
        """Nothing to be kept."""


def lookup(text: Sequence[int], count: int, ngram: int) -> list[int]:
    """The `count` tokens that followed the longest run of last tokens, of up to `ngram`, that the text has had before.

    Of several such places the latest. Where the text ends too soon, what followed is repeated. Empty where the last
    token is new. (Prompt lookup decoding; Saxena, 2023.)
    """
    last = len(text) - 1
    best, longest = -1, 0
    for end in range(last - 1, -1, -1):
        length = 0
        while length < min(ngram, end + 1) and text[end - length] == text[last - length]:
            length += 1
        if length > longest:
            best, longest = end, length
        if longest == ngram:
            break
    return [text[best + 1 + place % (last - best)] for place in range(count)] if longest else []


def drafted(logits_bv: Tensor, read: Callable[[Tensor], Tensor], count: int, draw: Draw) -> Proposal:
    """`count` tokens, one after the other: the first by logits (b, v), the next by those that `read` gives after it."""
    tokens: list[Tensor] = []
    probs: list[Tensor] = []
    for place in range(count):
        if tokens:
            logits_bv = read(tokens[-1][:, None])
        tokens_b, probs_bv = draw(logits_bv, place)
        tokens.append(tokens_b)
        if probs_bv is not None:
            probs.append(probs_bv)
    return Proposal(torch.stack(tokens, 1), torch.stack(probs, 1) if probs else None)


def fitted(logits: Tensor, entries: int) -> Tensor:
    """Logits over `entries` tokens: what a draft lacks, it never drafts."""
    missing = entries - logits.shape[-1]
    return pad(logits, (0, missing), value=-torch.inf) if missing else logits
