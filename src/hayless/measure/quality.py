"""How good a language model is on given documents: loss, bits per byte, perplexity.

What is counted, so that figures of different models compare:

- Every token of a document is predicted once, the first one too: it is predicted from the begin token (the
  tokenizer's, or its end token where it has none), which stands before the document and is not itself predicted. So
  the nats of a document are the cost of all its bytes, and bits per byte hides none of them. Where the document's
  tokens already start with the begin token, none is added. An end token that is part of the document is predicted like
  any other; it costs nats and has no bytes.
- A document longer than the context is read in windows that start `stride` tokens apart. A window predicts only what
  the windows before it did not, so every token but those of the first window has at least context − stride tokens
  before it.
- Loss is nats a token over all documents (token-weighted), bits per byte is nats / ln 2 / bytes, perplexity is
  exp(loss). Logits are turned to float32 before the loss; sums are exact (fsum), so the batch size changes a result
  by the rounding of the model's own arithmetic only.
- Intervals are bootstrap intervals over documents (`hayless.measure.interval`).

For instruction tuning, `counted` marks the tokens of the output: only those are scored, and `bytes` are the output's.
What the model would have said there, and how sure it was of that, is kept where it is asked for (`judging`).
Shapes: b windows, s positions, v entries of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.errors import RequestError, WorkError, bad_value
from hayless.core.progress import Progress, no_progress
from hayless.decode.engine import check_causal, evaluating
from hayless.measure import interval
from hayless.measure.calibration import TOKEN_BINS, Calibration, Judged, calibration
from hayless.measure.interval import Interval


@dataclass(frozen=True, slots=True)
class Document:
    """One document to predict: its tokens (n,), the bytes of the text they stand for, and which tokens count.

    `counted` (n,) of bool is None where all do; `bytes` are those of the counted text.
    """

    id: str
    tokens: Tensor
    bytes: int
    counted: Tensor | None = None


class DocumentLoss(BaseModel):
    """What one document cost: the sum of its nats over `tokens` predicted tokens that stand for `bytes` bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    nats: float
    tokens: int
    bytes: int


class Quality(BaseModel):
    """Loss in nats a token and bits per byte with 95% intervals, and the documents they come from.

    `too_short` counts documents left out because they have no token to predict. `judged` has the likeliest token at
    each place, where that was asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: Interval
    bits_per_byte: Interval
    documents: tuple[DocumentLoss, ...]
    too_short: int
    context: int
    stride: int
    judged: tuple[Judged, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens predicted, over all documents."""
        return sum(document.tokens for document in self.documents)

    @property
    def bytes(self) -> int:
        """Bytes they stand for."""
        return sum(document.bytes for document in self.documents)

    def part(self, ids: Collection[str]) -> Quality:
        """The same figures over some of the documents. RequestError where none of them was measured."""
        rows = [row for row in self.documents if row.id in ids]
        judged = [found for found in self.judged if found.id in ids]
        return _over(rows, judged, too_short=0, context=self.context, stride=self.stride)

    @property
    def token_accuracy(self) -> Interval | None:
        """The share of tokens that the model would have chosen; None where that was not looked at."""
        if not self.judged:
            return None
        return interval.ratio([sum(found.right) for found in self.judged], [len(found.right) for found in self.judged])

    @property
    def calibration(self) -> Calibration | None:
        """How sure the model was of these; None where that was not looked at."""
        return calibration(self.judged, *TOKEN_BINS) if self.judged else None

    @property
    def perplexity(self) -> Interval | None:
        """exp(loss); None where that is no finite number."""
        ends = (self.loss.value, self.loss.low, self.loss.high)
        if any(end is not None and end > 700 for end in ends):
            return None
        value, low, high = (None if end is None else math.exp(end) for end in ends)
        assert value is not None
        return Interval(value=value, low=low, high=high)


def quality(
    model: PreTrainedModel,
    documents: Sequence[Document],
    *,
    begin: int | None,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    judging: bool = False,
    progress: Progress = no_progress,
) -> Quality:
    """Loss of a causal language model on `documents`, computed where the model is and in its dtype.

    `begin` is the token put before each document; None for documents that start with one of their own. `context` is in
    tokens (the model's own limit if None), `stride` half of it if None. `judging` also keeps what the model would have
    said, and how sure it was. NotSupported for a model that is no causal
    language model; RequestError for impossible settings, repeated ids, tokens the model does not have; WorkError naming
    the document where the loss is not finite.
    """
    check_causal(model)
    context, stride = window_size(model, context, stride)
    if batch_size < 1:
        raise bad_value("batch_size", batch_size, allowed="1 or more")
    _check(documents, model.config.vocab_size, begin)
    sequences = [_sequence(document, begin) for document in documents]
    windows = [
        window
        for number, sequence in enumerate(sequences)
        for window in _windows(number, len(sequence.tokens), context, stride)
        if sequence.counted[window.first : window.end].any()
    ]
    if not windows:
        raise RequestError("No document has a token to predict.", hint="Give documents of at least two tokens.")
    # Longest first: batches are nearly rectangular, and memory peaks at once, not after an hour.
    windows.sort(key=lambda window: (window.end - window.start, window.end - window.first), reverse=True)
    found: list[list[_Found]] = [[] for _ in documents]
    with evaluating(model), torch.inference_mode():
        for at in range(0, len(windows), batch_size):
            progress("measuring", at, len(windows))
            batch = windows[at : at + batch_size]
            for window, part in zip(batch, _computed(model, batch, sequences, judging), strict=True):
                found[window.document].append(part)
    progress("measuring", len(windows), len(windows))
    measured = [
        (document, sequence, parts)
        for document, sequence, parts in zip(documents, sequences, found, strict=True)
        if parts
    ]
    rows = [_row(document, sequence, [part.nats for part in parts]) for document, sequence, parts in measured]
    judged = [_judged(document.id, parts) for document, _, parts in measured] if judging else []
    return _over(rows, judged, too_short=len(documents) - len(rows), context=context, stride=stride)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a loss differs by rounding alone: `loss` in nats a token over `documents` documents, `largest` of one."""

    loss: float
    largest: float
    documents: int
    batch_sizes: tuple[int, int]


def batch_drift(
    model: PreTrainedModel,
    documents: Sequence[Document],
    found: Quality,
    *,
    begin: int | None,
    batch_size: int,
    tokens: int,
) -> Drift:
    """Measure the first documents, about `tokens` tokens of them, again in batches of another size than `found` had.

    In exact arithmetic nothing would change; differences between models that are as small as this say nothing. One
    window at a time stands against `batch_size`, or 8 against 1. RequestError where no document of `found` is there.
    """
    first: list[Document] = []
    measured = {row.id: row for row in found.documents}
    for document in documents:
        if document.id in measured and sum(len(each.tokens) for each in first) < tokens:
            first.append(document)
    other = 1 if batch_size > 1 else 8
    again = quality(model, first, begin=begin, context=found.context, stride=found.stride, batch_size=other)
    changes = [row.nats - measured[row.id].nats for row in again.documents]
    largest = max(abs(change) / row.tokens for change, row in zip(changes, again.documents, strict=True))
    return Drift(abs(sum(changes)) / again.tokens, largest, len(changes), (batch_size, other))


def paired_difference(
    one: Quality, other: Quality, what: Literal["loss", "bits_per_byte"] = "bits_per_byte"
) -> Interval:
    """`one` minus `other`, with the interval of the difference over the same documents (a paired bootstrap).

    RequestError when the documents differ, or when the loss a token is compared over different tokens.
    """
    rows, others = ({row.id: row for row in found.documents} for found in (one, other))
    if rows.keys() != others.keys():
        odd = sorted(rows.keys() ^ others.keys())
        raise RequestError(f"Not the same documents: {len(odd)} are in one only, such as {odd[0]!r}.")
    ids = sorted(rows)
    for name in ids:
        mine, theirs = rows[name], others[name]
        if mine.bytes != theirs.bytes:
            raise RequestError(f"Document {name!r} has {mine.bytes} bytes in one and {theirs.bytes} in the other.")
        if what == "loss" and mine.tokens != theirs.tokens:
            raise RequestError(
                f"Document {name!r} has {mine.tokens} tokens in one and {theirs.tokens} in the other.",
                hint="Losses a token compare under one tokenizer only; compare bits_per_byte.",
            )
    unit = math.log(2) if what == "bits_per_byte" else 1.0

    def figures(found: dict[str, DocumentLoss]) -> tuple[list[float], list[float]]:
        below = [found[name].bytes if what == "bits_per_byte" else found[name].tokens for name in ids]
        return [found[name].nats / unit for name in ids], [float(count) for count in below]

    return interval.difference(figures(rows), figures(others))


def window_size(model: PreTrainedModel, context: int | None, stride: int | None) -> tuple[int, int]:
    """(context, stride) in tokens with defaults filled in; RequestError where they cannot be."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    context = context if context is not None else limit
    if context is None:
        raise RequestError("The model's config does not limit its context.", hint="Give context.")
    if context < 1 or (limit is not None and context > limit):
        raise bad_value("context", context, allowed=f"1 to {limit or 'any number of'} tokens, the model's own limit")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise bad_value("stride", stride, allowed=f"1 to context ({context})")
    return context, stride


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A document with its begin token: tokens (n,), and which of them are predicted and counted (never the first)."""

    tokens: Tensor
    counted: Tensor


@dataclass(frozen=True, slots=True)
class _Window:
    """Inputs `start` to `end` − 1 of a sequence; predicts the tokens `first` to `end`, `end` excluded from inputs.

    Positions count from the sequence's first token; `end` is one past the last predicted token.
    """

    document: int
    start: int
    first: int
    end: int


def _check(documents: Sequence[Document], entries: int, begin: int | None) -> None:
    if begin is not None and not 0 <= begin < entries:
        raise bad_value("begin", begin, allowed=f"0 to {entries - 1}, the model's tokens")
    seen = set()
    for document in documents:
        if document.id in seen:
            raise RequestError(f"Two documents have the id {document.id!r}.")
        seen.add(document.id)
        if document.counted is not None and document.counted.shape != document.tokens.shape:
            raise RequestError(f"Document {document.id!r}: counted and tokens have different lengths.")
        if len(document.tokens) and not 0 <= int(document.tokens.min()) <= int(document.tokens.max()) < entries:
            raise RequestError(
                f"Document {document.id!r} has token {int(document.tokens.max())}; the model has {entries}.",
                hint="Does the tokenizer belong to this model?",
            )


def _sequence(document: Document, begin: int | None) -> _Sequence:
    tokens = document.tokens.long()
    counted = torch.ones_like(tokens, dtype=torch.bool) if document.counted is None else document.counted.bool()
    if begin is not None and (not len(tokens) or int(tokens[0]) != begin):
        tokens = torch.cat([tokens.new_tensor([begin]), tokens])
        counted = torch.cat([counted.new_zeros(1), counted])
    counted = counted.clone()
    counted[:1] = False
    return _Sequence(tokens, counted)


def _windows(document: int, length: int, context: int, stride: int) -> Iterator[_Window]:
    """Windows over a sequence of `length` tokens (begin token included), each predicting what is still open."""
    first, start = 1, 0
    while first < length:
        end = min(start + context + 1, length)
        yield _Window(document, start, first, end)
        first, start = end, start + stride


@dataclass(frozen=True, slots=True)
class _Found:
    """Of the counted tokens that one window predicts: their nats, and of the likeliest tokens the probabilities and
    whether they were right."""

    nats: float
    confidence: list[float]
    right: list[float]


def _computed(
    model: PreTrainedModel, windows: Sequence[_Window], sequences: Sequence[_Sequence], judging: bool
) -> list[_Found]:
    """What each window gives; no judgements unless `judging`."""
    longest = max(window.end - 1 - window.start for window in windows)
    ids_bs = torch.zeros(len(windows), longest, dtype=torch.long)
    mask_bs = torch.zeros(len(windows), longest, dtype=torch.long)
    for row, window in enumerate(windows):
        inputs = sequences[window.document].tokens[window.start : window.end - 1]
        ids_bs[row, : len(inputs)] = inputs
        mask_bs[row, : len(inputs)] = 1
    # Logits are large: only those from the first position that some window predicts from are computed.
    lead = min(window.first - 1 - window.start for window in windows)
    logits_bsv = model(
        input_ids=ids_bs.to(model.device),
        attention_mask=mask_bs.to(model.device),
        position_ids=torch.arange(longest, device=model.device).expand(len(windows), -1),
        use_cache=False,
        logits_to_keep=longest - lead,
    ).logits
    found = []
    for row, window in enumerate(windows):
        sequence, offset = sequences[window.document], window.start + lead
        predicted_from = slice(window.first - 1 - offset, window.end - 1 - offset)
        targets = sequence.tokens[window.first : window.end].to(model.device)
        logits_sv = logits_bsv[row, predicted_from].float()
        counted = sequence.counted[window.first : window.end]
        nats = F.cross_entropy(logits_sv, targets, reduction="none").cpu().double()[counted]
        confidence, right = [], []
        if judging:
            probability, choice = logits_sv.softmax(-1).max(-1)
            confidence = probability.cpu()[counted].tolist()
            right = (choice == targets).cpu()[counted].double().tolist()
        found.append(_Found(float(nats.sum()), confidence, right))
    return found


def _judged(id: str, parts: Sequence[_Found]) -> Judged:
    """What was predicted of one document, window after window."""
    return Judged(
        id=id,
        confidence=tuple(chain.from_iterable(part.confidence for part in parts)),
        right=tuple(chain.from_iterable(part.right for part in parts)),
    )


def _over(
    rows: Sequence[DocumentLoss], judged: Sequence[Judged], *, too_short: int, context: int, stride: int
) -> Quality:
    return Quality(
        loss=interval.ratio([row.nats for row in rows], [row.tokens for row in rows]),
        bits_per_byte=interval.ratio([row.nats / math.log(2) for row in rows], [row.bytes for row in rows]),
        documents=tuple(rows),
        too_short=too_short,
        context=context,
        stride=stride,
        judged=tuple(judged),
    )


def _row(document: Document, sequence: _Sequence, costs: list[float]) -> DocumentLoss:
    nats = math.fsum(costs)
    if not math.isfinite(nats):
        raise WorkError(
            f"The loss of document {document.id!r} is {nats}.",
            hint="The weights are damaged, or overflow in this dtype: try float32.",
        )
    if document.bytes < 1:
        raise RequestError(f"Document {document.id!r} has tokens but {document.bytes} bytes.")
    return DocumentLoss(id=document.id, nats=nats, tokens=int(sequence.counted.sum()), bytes=document.bytes)
