"""How good any model is on any documents, in this process: a language model by its losses, a reward model by pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from hayless.core.errors import RequestError, bad_value
from hayless.core.progress import Progress, no_progress
from hayless.data.batches import Batch, one_pass
from hayless.data.config import DataConfig
from hayless.data.corpus import Kind, to_measure
from hayless.data.store import TokenStore, store_of
from hayless.measure.memory import enough_memory
from hayless.measure.quality import Quality, quality, window_size
from hayless.measure.reward import Ranking, ranking
from hayless.measure.saved import as_document
from hayless.measure.settings import MeasureSettings
from hayless.model.load import check_tokenizer, load_model, load_tokenizer, task_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out: over all documents, and by domain where there are several. `data` says what the documents are."""

    data: str
    kind: Kind
    found: Quality | Ranking
    domains: dict[str, Quality | Ranking]
    device: str
    dtype: str


def evaluate(
    source: str,
    data: DataConfig,
    settings: MeasureSettings,
    *,
    everything: bool,
    tokenizer: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure the model `source` (a folder, an adapter's folder or a hub id) on the documents of `data`.

    `everything` takes all documents, otherwise those that a recipe with the same data holds out; of either as many as
    `settings.heldout_tokens` allow. Raises what reading, loading and measuring raise; RequestError for a language model
    on pairs of answers, and for a reward model on anything else.
    """
    chosen = to_measure(data, everything=everything, progress=progress)
    _check_fit(source, chosen.kind)
    words = load_tokenizer(tokenizer or source)
    hint = "Use a smaller batch size or context, or another dtype."
    with (
        enough_memory(hint),
        # Windows keeps files that are mapped to memory.
        tempfile.TemporaryDirectory(prefix="hayless-", ignore_cleanup_errors=True) as folder,
    ):
        model = load_model(source, dtype=dtype, device=device, task=task_of(source))
        check_tokenizer(model, words)
        store = store_of(chosen, words, Path(folder) / "store", progress=progress)
        look = _ranked if chosen.kind == "preference" else _predicted
        found, members = look(model, store, settings, progress)
    return Evaluation(
        data=chosen.description,
        kind=chosen.kind,
        found=found,
        domains={name: found.part(members[name]) for name in sorted(members)} if len(members) > 1 else {},
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


_Members = dict[str, set[str]]
"""Domain → ids of what was measured of it."""


def _check_fit(source: str, kind: Kind) -> None:
    task = task_of(source)
    if task == "reward" and kind != "preference":
        raise RequestError(
            f"{source} is a reward model, and the data has no pairs of answers.",
            hint="Give preference data: rows with chosen and rejected.",
        )
    if task == "causal" and kind == "preference":
        raise RequestError(
            f"{source} is a language model, and the data holds pairs of answers, which only a reward model ranks.",
            hint="Give text or prompts with outputs, or a reward model.",
        )


def _predicted(
    model: PreTrainedModel, store: TokenStore, settings: MeasureSettings, progress: Progress
) -> tuple[Quality | Ranking, _Members]:
    documents = list(store.sample(settings.heldout_tokens))
    found = quality(
        model,
        [as_document(document) for document in documents],
        begin=store.begin,
        context=settings.context,
        stride=settings.stride,
        batch_size=settings.batch_size,
        progress=progress,
    )
    domains = {document.id: document.domain for document in documents}
    return found, _members((row.id, domains[row.id]) for row in found.documents)


def _ranked(
    model: PreTrainedModel, store: TokenStore, settings: MeasureSettings, progress: Progress
) -> tuple[Quality | Ranking, _Members]:
    if settings.stride is not None:
        raise bad_value("stride", settings.stride, allowed="nothing, since pairs of answers are not read in windows")
    context, _ = window_size(model, settings.context, None)
    batches = list(
        one_pass(store, sequence_length=context, rows=settings.batch_size, max_tokens=settings.heldout_tokens)
    )

    def watched() -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            progress("measuring", number, len(batches))
            yield batch

    found = ranking(model, watched())
    progress("measuring", len(batches), len(batches))
    domains = {id: store.domains[domain] for id, domain in zip(store.ids, store.domain_of, strict=True)}
    return found, _members((pair.id, domains[f"{pair.id}#chosen"]) for pair in found.pairs)


def _members(measured: Iterable[tuple[str, str]]) -> _Members:
    members: _Members = {}
    for id, domain in measured:
        members.setdefault(domain, set()).add(id)
    return members
