"""What a model is worth on the documents of a store: a language model by its losses, a reward model by pairs."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hayless.core.errors import bad_value
from hayless.core.progress import Progress, no_progress
from hayless.data.batches import one_pass
from hayless.data.store import StoredDocument, TokenStore
from hayless.measure.quality import Document, Quality, quality, window_size
from hayless.measure.reward import Ranking, ranking
from hayless.measure.settings import MeasureSettings


def look(
    model: PreTrainedModel,
    store: TokenStore,
    settings: MeasureSettings,
    *,
    judging: bool = False,
    progress: Progress = no_progress,
) -> Quality | Ranking:
    """Measure `model` on a store, on as many documents as `settings` allow: pairs of answers are ranked. What the model
    would have said is judged where it is to give outputs, and elsewhere if asked (`judging`).

    Raises what `quality` and `ranking` raise; RequestError for a stride where pairs are ranked.
    """
    if store.kind == "preference":
        return _ranked(model, store, settings, progress)
    return quality(
        model,
        sampled(store, settings),
        begin=store.begin,
        context=settings.context,
        stride=settings.stride,
        batch_size=settings.batch_size,
        judging=judging or store.kind == "sft",
        progress=progress,
    )


def sampled(store: TokenStore, settings: MeasureSettings) -> list[Document]:
    """The documents that `look` measures: what the store marks as learnt is what counts."""
    return [as_document(stored) for stored in store.sample(settings.heldout_tokens)]


def as_document(stored: StoredDocument) -> Document:
    """A document of a store as `quality` takes it."""
    return Document(stored.id, torch.from_numpy(stored.tokens), stored.bytes, torch.from_numpy(stored.trained))


def _ranked(model: PreTrainedModel, store: TokenStore, settings: MeasureSettings, progress: Progress) -> Ranking:
    if settings.stride is not None:
        raise bad_value("stride", settings.stride, allowed="nothing, since pairs of answers are not read in windows")
    context, _ = window_size(model, settings.context, None)
    pairs = one_pass(store, sequence_length=context, rows=settings.batch_size, max_tokens=settings.heldout_tokens)
    return ranking(model, list(pairs), progress=progress)
