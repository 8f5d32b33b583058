"""How good any model is on any documents, in this process: a language model by its losses, a reward model by pairs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hayless.core.errors import RequestError
from hayless.core.progress import Progress, no_progress
from hayless.data.config import DataConfig
from hayless.data.corpus import Kind, to_measure
from hayless.data.store import TokenStore, store_of
from hayless.measure.heldout import look
from hayless.measure.memory import enough_memory
from hayless.measure.quality import Quality
from hayless.measure.reward import Ranking
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
    judging: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure the model `source` (a folder, an adapter's folder or a hub id) on the documents of `data`.

    `everything` takes all documents, otherwise those that a recipe with the same data holds out; of either as many as
    `settings.heldout_tokens` allow; `judging` as in `look`. Raises what reading, loading and measuring raise;
    RequestError for a language model on pairs of answers, and for a reward model on anything else.
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
        found = look(model, store, settings, judging=judging, progress=progress)
        members = _members(found, store)
    return Evaluation(
        data=chosen.description,
        kind=chosen.kind,
        found=found,
        domains={name: found.part(members[name]) for name in sorted(members)} if len(members) > 1 else {},
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


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


def _members(found: Quality | Ranking, store: TokenStore) -> dict[str, set[str]]:
    """Domain → ids of what was measured of it."""
    domains = {name: store.domains[number] for name, number in zip(store.ids, store.domain_of, strict=True)}
    if isinstance(found, Quality):
        measured = [(row.id, domains[row.id]) for row in found.documents]
    else:
        measured = [(pair.id, domains[f"{pair.id}#chosen"]) for pair in found.pairs]
    members: dict[str, set[str]] = {}
    for name, domain in measured:
        members.setdefault(domain, set()).add(name)
    return members
