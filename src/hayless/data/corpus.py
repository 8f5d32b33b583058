"""From a recipe's data section to clean records: read, split, freed of copies, kept on disk as JSON Lines.

The held-out part is chosen first, from names alone. Then copies go, with held-out documents taken as the earlier ones,
so that no training document is a copy or near-copy of a held-out one; that holds with `near_duplicates: false` too,
which keeps near-copies inside the training part only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError, unknown
from hayless.core.progress import Progress, no_progress
from hayless.core.units import format_bytes
from hayless.data import sources
from hayless.data.checksums import AGAIN, check, checksums
from hayless.data.config import DataConfig
from hayless.data.dedupe import find_copies
from hayless.data.documents import Document
from hayless.data.examples import Example, Preference, Record, as_document
from hayless.data.split import split

Kind = Literal["lm", "sft", "preference"]
"""What is learnt: whole documents, the output of examples, which of two answers is better."""

_RECORDS: dict[Kind, type[Record]] = {"lm": Document, "sft": Example, "preference": Preference}
_WORDS: dict[Kind, str] = {"lm": "plain text", "sft": "prompts with outputs", "preference": "preference pairs"}
_FORMAT = 1
_TRAIN, _HELDOUT = "train.jsonl", "heldout.jsonl"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Clean records of one kind. `fingerprint` changes with anything that went into them."""

    train: list[Record]
    heldout: list[Record]
    description: str
    fingerprint: str


def fingerprint(config: DataConfig, kind: Kind) -> str:
    """A name for what `corpus` would return: SHA-256 over the settings and the content of every source."""
    chosen = config.model_dump_json(exclude={"proportions"})
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
    records, lines = _sources(config, progress)
    kinds: list[Kind] = [kind for kind, wanted in _RECORDS.items() if any(type(record) is wanted for record in records)]
    if len(kinds) > 1:
        raise RequestError(
            f"The data holds {' and '.join(_WORDS[kind] for kind in kinds)}, which are measured in different ways.",
            hint="Measure each by itself.",
        )
    if not everything:
        _, heldout = split(records, config.heldout)
        # Held-out records come first where copies are looked for, so the others cannot change which of them stay.
        records, _, exact, near = _without_copies(heldout, [], config.near_duplicates, progress)
        lines.append(f"left out: {exact} exact copies, {near} near-copies")
    lines.append(f"{'all' if everything else 'held out'}: {_sizes(records)}")
    return Selection(records, kinds[0], "\n".join(lines))


def corpus(config: DataConfig, folder: Path, *, kind: Kind = "lm", progress: Progress = no_progress) -> Corpus:
    """The records of `config`, from `folder` where they were cleaned before, otherwise read, cleaned and kept there.

    RequestError for sources that cannot be read as `kind`, unknown domains and too little text.
    """
    name = fingerprint(config, kind)
    path = folder / f"corpus-{kind}-{name[:16]}"
    atomic.recover(path)
    if not path.is_dir():
        train, heldout, description = _clean(config, kind, progress)
        with atomic.folder(path) as partial:
            _write(partial / _TRAIN, train)
            _write(partial / _HELDOUT, heldout)
            about = {"fingerprint": name, "description": description, "sha256": checksums(partial, (_TRAIN, _HELDOUT))}
            atomic.write_json(partial / "corpus.json", about)
    about = atomic.read_json(path / "corpus.json")
    if about.get("fingerprint") != name:
        raise FileDamaged(f"{path} is not the corpus its name says.", hint=AGAIN)
    check(path, about["sha256"])
    return Corpus(_read(path / _TRAIN, kind), _read(path / _HELDOUT, kind), str(about["description"]), name)


def _clean(config: DataConfig, kind: Kind, progress: Progress) -> tuple[list[Record], list[Record], str]:
    records, lines = _sources(config, progress)
    train, heldout = split([_as_kind(record, kind) for record in records], config.heldout)
    heldout, train, exact, near = _without_copies(heldout, train, config.near_duplicates, progress)
    if not train:
        raise RequestError("Every training document is a copy of a held-out one.", hint="Give more different text.")
    lines.append(f"left out: {exact} exact copies, {near} near-copies")
    for title, part in (("training", train), ("held out", heldout)):
        lines.append(f"{title}: {_sizes(part)}")
    return train, heldout, "\n".join(lines)


def _sources(config: DataConfig, progress: Progress) -> tuple[list[Record], list[str]]:
    """The records of all sources that are of the wanted domains, under distinct names; and a line about each source."""
    records: list[Record] = []
    lines: list[str] = []
    for number, source in enumerate(config.sources):
        progress("reading sources", number, len(config.sources))
        read = sources.read_source(source)
        records += read.records
        lines.append(read.description)
    progress("reading sources", len(config.sources), len(config.sources))
    return _distinct(_of_domains(records, config.domains)), lines


def _as_kind(record: Record, kind: Kind) -> Record:
    if kind == "lm" and isinstance(record, Example):
        return as_document(record)
    if not isinstance(record, _RECORDS[kind]):
        have = next(_WORDS[name] for name, held in _RECORDS.items() if type(record) is held)
        raise RequestError(
            f"{record.id} holds {have}; this step learns from {_WORDS[kind]}.",
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
    heldout: list[Record], train: list[Record], near: bool, progress: Progress
) -> tuple[list[Record], list[Record], int, int]:
    records = [*heldout, *train]
    copies = find_copies(
        [record.text for record in records],
        near_from=0 if near else len(heldout),
        against=None if near else len(heldout),
        progress=progress,
    )
    kept = [copied is None for copied in copies.of]
    border = len(heldout)
    heldout = [record for record, keep in zip(heldout, kept[:border], strict=True) if keep]
    train = [record for record, keep in zip(train, kept[border:], strict=True) if keep]
    return heldout, train, copies.exact, copies.near


def _sizes(records: Sequence[Record]) -> str:
    sizes: Counter[str] = Counter()
    for record in records:
        sizes[record.domain] += len(record.text.encode())
    domains = ", ".join(f"{domain} {format_bytes(size)}" for domain, size in sorted(sizes.items()))
    return f"{len(records):,} documents, {format_bytes(sizes.total())} ({domains})"


def _write(path: Path, records: Sequence[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def _read(path: Path, kind: Kind) -> list[Record]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [_RECORDS[kind](**json.loads(line)) for line in file]
