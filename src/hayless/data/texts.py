"""The texts of sources, split as training splits them: for tokenizers, which need no clean corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hayless.core.errors import RequestError, bad_value
from hayless.core.progress import Progress, no_progress
from hayless.core.units import format_bytes
from hayless.data.config import Source
from hayless.data.examples import Record
from hayless.data.sources import read_source
from hayless.data.split import split


@dataclass(frozen=True, slots=True)
class Texts:
    """Training and held-out texts, and where they come from, in words."""

    train: list[str]
    heldout: list[str]
    description: str


def read_texts(sources: Sequence[Source], heldout: float, *, progress: Progress = no_progress) -> Texts:
    """The texts of all records; those held out are the ones that `hayless.data.corpus` holds out of the same sources.

    With `heldout` 0 both parts are everything. RequestError for sources that cannot be read and where too few documents
    are there to hold some out.
    """
    if not 0 <= heldout < 1:
        raise bad_value("heldout", heldout, allowed="a share from 0 (none) to below 1")
    records: list[Record] = []
    lines = []
    for number, source in enumerate(sources):
        progress("reading sources", number, len(sources))
        read = read_source(source)
        records += read.records
        lines.append(read.description)
    progress("reading sources", len(sources), len(sources))
    parts = (records, records)
    if heldout:
        try:
            parts = split(records, heldout)
        except RequestError as error:
            raise RequestError(error.message, hint="Give more documents, or --heldout 0 to use all for both.") from None
    train, kept = ([record.text for record in part] for part in parts)
    lines.append(f"{len(train):,} documents to train on, {len(kept):,} held out ({_size(kept)})")
    return Texts(train, kept, "\n".join(lines))


def _size(texts: Sequence[str]) -> str:
    return format_bytes(sum(len(text.encode()) for text in texts))
