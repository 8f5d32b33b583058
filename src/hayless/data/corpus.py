"""From a recipe's data section to clean records: read, split, freed of copies, kept on disk as JSON Lines.

The held-out part is chosen first, from names alone. Then copies go, with held-out documents taken as the earlier ones,
so that no training document is a copy or near-copy of a held-out one; that holds with `near_duplicates: false` too,
which keeps near-copies inside the training part only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError, unknown
from hayless.core.progress import Progress, no_progress
from hayless.core.units import format_bytes
from hayless.data import sources
from hayless.data.chats import ChatPreference, Conversation
from hayless.data.checksums import AGAIN, check, checksums
from hayless.data.config import DataConfig
from hayless.data.dedupe import find_copies
from hayless.data.documents import Document
from hayless.data.examples import Example, Preference, Record, as_document
from hayless.data.notes import Notes
from hayless.data.split import split

Kind = Literal["lm", "sft", "preference"]
"""What is learnt: whole documents, the output of examples, which of two answers is better."""

_RECORDS: dict[Kind, tuple[type[Record], ...]] = {
    "lm": (Document,),
    "sft": (Example, Conversation),
    "preference": (Preference, ChatPreference),
}
_TYPES: dict[str, type[Record]] = {kind.__name__: kind for kinds in _RECORDS.values() for kind in kinds}
_WORDS: dict[Kind, str] = {"lm": "plain text", "sft": "prompts with outputs", "preference": "preference pairs"}
_FORMAT = 3
_TRAIN, _HELDOUT = "train.jsonl", "heldout.jsonl"


EMPTY = "empty"
EXACT = "exact_copies"
NEAR = "near_copies"
CONTAMINATED = "contaminated"


class RecordFile:
    """The records of a file that `corpus` wrote, read anew each time they are gone through."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        with self._path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                fields = json.loads(line)
                yield _TYPES[fields.pop("record")](**fields)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Clean records of one kind. `fingerprint` changes with anything that went into them.

    `left_out` counts and names what is not among them: rows with nothing to learn (`empty`), copies of records that
    are (`exact_copies`, `near_copies`) and training records that copy held-out ones (`contaminated`).
    """

    train: RecordFile
    heldout: RecordFile
    description: str
    fingerprint: str
    left_out: Notes


def fingerprint(config: DataConfig, kind: Kind) -> str:
    """A name for what `corpus` would return: SHA-256 over the settings and the content of every source."""
    chosen = config.model_dump_json(exclude={"proportions", "allow"})
    parts = [str(_FORMAT), kind, chosen, *(sources.fingerprint(source) for source in config.sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Selection:
    """Records to measure a model on, their kind, and where they come from, in words."""

    records: list[Record]
    kind: Kind
    description: str


def to_measure(config: DataConfig, *, everything: bool, progress: Progress = no_progress) -> Selection:
    """The records of `config` for measuring: its held-out part as `corpus` has it, or `everything` as it stands.

    The kind is the sources' own: text is `lm`, examples are `sft`, pairs of answers are `preference`. RequestError for
    sources that cannot be read or are of several kinds, and where nothing can be held out.
    """
    records, lines, left_out = _sources(config, progress)
    kind = _one_kind(records)
    if not everything:
        _, heldout = split(records, config.heldout)
        # Held-out records come first where copies are looked for, so the others cannot change which of them stay.
        records, _ = _without_copies(heldout, [], config.near_duplicates, left_out, progress)
        lines.append(_left_out(left_out))
    lines.append(f"{'all' if everything else 'held out'}: {_sizes(records)}")
    return Selection(records, kind, "\n".join(lines))


def corpus(config: DataConfig, folder: Path, *, kind: Kind = "lm", progress: Progress = no_progress) -> Corpus:
    """The records of `config`, from `folder` where they were cleaned before, otherwise read, cleaned and kept there.

    RequestError for sources that cannot be read as `kind`, unknown domains and too little text.
    """
    name = fingerprint(config, kind)
    path = folder / f"corpus-{kind}-{name[:16]}"
    atomic.recover(path)
    if not path.is_dir():
        train, heldout, description, left_out = _clean(config, kind, progress)
        with atomic.folder(path) as partial:
            _write(partial / _TRAIN, train)
            _write(partial / _HELDOUT, heldout)
            about = {
                "fingerprint": name,
                "description": description,
                "records": {_TRAIN: len(train), _HELDOUT: len(heldout)},
                "left_out": left_out.to_json(),
                "sha256": checksums(partial, (_TRAIN, _HELDOUT)),
            }
            atomic.write_json(partial / "corpus.json", about)
    about = atomic.read_json(path / "corpus.json")
    if about.get("fingerprint") != name:
        raise FileDamaged(f"{path} is not the corpus its name says.", hint=AGAIN)
    check(path, about["sha256"])
    return Corpus(
        train=RecordFile(path / _TRAIN, about["records"][_TRAIN]),
        heldout=RecordFile(path / _HELDOUT, about["records"][_HELDOUT]),
        description=str(about["description"]),
        fingerprint=name,
        left_out=Notes.from_json(about["left_out"]),
    )


def kind_of(record: Record) -> Kind:
    """What a record is for."""
    return next(kind for kind, types in _RECORDS.items() if isinstance(record, types))


def kind_of_sources(config: DataConfig) -> Kind:
    """What the sources are for, by the first record of each. RequestError where they are for different things."""
    return _one_kind([sources.first_record(source) for source in config.sources])


def _one_kind(records: Sequence[Record]) -> Kind:
    kinds = sorted({kind_of(record) for record in records})
    if len(kinds) > 1:
        raise RequestError(
            f"The data holds {' and '.join(_WORDS[kind] for kind in kinds)}, which are used in different ways.",
            hint="Take each by itself.",
        )
    return kinds[0]


def _clean(config: DataConfig, kind: Kind, progress: Progress) -> tuple[list[Record], list[Record], str, Notes]:
    records, lines, left_out = _sources(config, progress)
    train, heldout = split([_as_kind(record, kind) for record in records], config.heldout)
    heldout, train = _without_copies(heldout, train, config.near_duplicates, left_out, progress)
    if not train:
        raise RequestError("Every training document is a copy of a held-out one.", hint="Give more different text.")
    lines.append(_left_out(left_out))
    for title, part in (("training", train), ("held out", heldout)):
        lines.append(f"{title}: {_sizes(part)}")
    return train, heldout, "\n".join(lines), left_out


def _sources(config: DataConfig, progress: Progress) -> tuple[list[Record], list[str], Notes]:
    """The records of all sources that are of the wanted domains, under distinct names; a line about each source; and
    what had nothing to learn."""
    records: list[Record] = []
    lines: list[str] = []
    left_out = Notes()
    for number, source in enumerate(config.sources):
        progress("reading sources", number, len(config.sources))
        read = sources.read_source(source)
        records += read.records
        lines.append(read.description)
        for name in read.empty:
            left_out.add(EMPTY, name)
    progress("reading sources", len(config.sources), len(config.sources))
    return _distinct(_of_domains(records, config.domains)), lines, left_out


def _as_kind(record: Record, kind: Kind) -> Record:
    if kind == "lm" and isinstance(record, Example):
        return as_document(record)
    if kind == "lm" and isinstance(record, Conversation):
        return record
    if kind_of(record) != kind:
        raise RequestError(
            f"{record.id} holds {_WORDS[kind_of(record)]}; this step learns from {_WORDS[kind]}.",
            hint="Choose an objective that fits (lm, sft, reward), or another source.",
        )
    return record


def _of_domains(records: list[Record], wanted: Sequence[str]) -> list[Record]:
    present = {record.domain for record in records}
    for domain in wanted:
        if domain not in present:
            raise unknown("domain", domain, present)
    return [record for record in records if not wanted or record.domain in wanted]


def _distinct(records: list[Record]) -> list[Record]:
    """Records with distinct ids: a name that came before gets a number."""
    seen: Counter[str] = Counter()
    result = []
    for record in records:
        seen[record.id] += 1
        times = seen[record.id]
        result.append(replace(record, id=f"{record.id}~{times}") if times > 1 else record)
    return result


def _without_copies(
    heldout: list[Record], train: list[Record], near: bool, left_out: Notes, progress: Progress
) -> tuple[list[Record], list[Record]]:
    """Held-out and training records without copies; what goes is noted in `left_out`."""
    records = [*heldout, *train]
    border = len(heldout)
    copies = find_copies(
        [record.text for record in records],
        near_from=0 if near else border,
        against=None if near else border,
        progress=progress,
    )
    for at, (record, of) in enumerate(zip(records, copies, strict=True)):
        if of is not None:
            exact = record.text == records[of].text
            what = CONTAMINATED if of < border <= at else EXACT if exact else NEAR
            left_out.add(what, f"{record.id} ({'copies' if exact else 'nearly copies'} {records[of].id})")
    kept = [record for record, of in zip(records, copies, strict=True) if of is None]
    stay = copies[:border].count(None)
    return kept[:stay], kept[stay:]


def _left_out(left_out: Notes) -> str:
    counts = {what: left_out[what].count if what in left_out else 0 for what in (EXACT, NEAR, CONTAMINATED)}
    return (
        f"left out: {counts[EXACT]} exact copies, {counts[NEAR]} near-copies,"
        f" {counts[CONTAMINATED]} training documents that copy held-out ones"
    )


def _sizes(records: Sequence[Record]) -> str:
    sizes: Counter[str] = Counter()
    for record in records:
        sizes[record.domain] += len(record.text.encode())
    domains = ", ".join(f"{domain} {format_bytes(size)}" for domain, size in sorted(sizes.items()))
    return f"{len(records):,} documents, {format_bytes(sizes.total())} ({domains})"


def _write(path: Path, records: Sequence[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            # Not dataclasses.asdict, which copies every message of a chat.
            fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
            file.write(json.dumps({"record": type(record).__name__, **fields}, ensure_ascii=False) + "\n")
