"""Tokens of documents on disk, read through memory maps; built once for given data and tokenizer.

A document is stored as the model sees it: begin token, text, end token; a conversation as its chat template writes it.
Examples hold prompt and output, preference pairs two documents in a row, `ID#chosen` and `ID#rejected`; `trained` marks
the tokens that are learnt (the begin token and the prompt are not, of a conversation only the assistant's turns are).
A store is a folder:

- `tokens.npy` (T,) uint16, or uint32 for vocabularies above 65,536; `offsets.npy` (documents + 1,) int64
- `bytes.npy` (documents,) int64: bytes of the learnt text
- `trained.npy` (T,) bool, absent where everything but the begin token is learnt
- `reach.npy` (T,) int64, held-out part only: bytes of learnt text that the document's tokens up to this one stand for
- `documents.json` ids and domains; `store.json` the format, what the store was made from, what was noticed in its
  texts, SHA-256 of every other file
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hayless.core import atomic
from hayless.core.errors import FileDamaged
from hayless.core.progress import Progress, no_progress
from hayless.core.units import format_bytes, format_count
from hayless.data import templates
from hayless.data.checksums import AGAIN, check, checksums
from hayless.data.config import DataConfig
from hayless.data.corpus import Kind, Selection, corpus, fingerprint
from hayless.data.encode import END_INSIDE, Encoded, encode_records
from hayless.data.notes import Notes
from hayless.data.split import position
from hayless.data.tokenizer import begin_token, end_token

__all__ = ["Kind", "Prepared", "StoredDocument", "TokenStore", "open_store", "prepare"]

_FORMAT = 2
_FILES = ("tokens.npy", "offsets.npy", "bytes.npy", "trained.npy", "reach.npy", "documents.json")


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """One document: tokens (n,) int64 with begin and end token, which of them are learnt (n,), bytes they stand for."""

    id: str
    domain: str
    tokens: NDArray[np.int64]
    trained: NDArray[np.bool_]
    bytes: int


class TokenStore:
    """Read access to a store's folder. Opening checks every file against its SHA-256 unless `verify` is False."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        about = _about(folder)
        if verify:
            check(folder, about["sha256"])
        self.kind: Kind = about["kind"]
        self.end: int = about["end"]
        self.begin: int | None = about["begin"]
        self.vocab_size: int = about["vocab_size"]
        self.notes = Notes.from_json(about["notes"])
        self.tokens = _array(folder, "tokens.npy")
        self.offsets = _array(folder, "offsets.npy")
        self.bytes = _array(folder, "bytes.npy")
        self._trained = _array(folder, "trained.npy") if "trained.npy" in about["sha256"] else None
        self._reach = _array(folder, "reach.npy") if "reach.npy" in about["sha256"] else None
        documents = atomic.read_json(folder / "documents.json")
        self.ids: list[str] = documents["ids"]
        self.domains: list[str] = documents["domains"]
        self.domain_of = np.asarray(documents["domain_of"], dtype=np.int64)
        counts = {len(self.ids), len(self.domain_of), len(self.bytes), len(self.offsets) - 1}
        if len(counts) > 1 or int(self.offsets[-1]) != len(self.tokens):
            raise FileDamaged(f"{folder}: the files of this store do not belong together.", hint=AGAIN)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> StoredDocument:
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return StoredDocument(
            id=self.ids[index],
            domain=self.domains[self.domain_of[index]],
            tokens=self.tokens[start:end].astype(np.int64),
            trained=self.trained(start, end, first=start),
            bytes=int(self.bytes[index]),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, begin and end included."""
        return np.diff(self.offsets).astype(np.int64)

    def trained(self, start: int, end: int, *, first: int) -> NDArray[np.bool_]:
        """Which of the tokens `start` to `end` are learnt; they belong to a document that starts at `first`."""
        if self._trained is not None:
            return np.array(self._trained[start:end])
        marks = np.ones(end - start, dtype=np.bool_)
        if start == first and self.begin is not None:
            marks[:1] = False
        return marks

    def marks(self, first: int, last: int) -> NDArray[np.bool_]:
        """Which tokens of the documents `first` to `last` − 1 are learnt, one document after the other."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        if self._trained is not None:
            return np.array(self._trained[start:end])
        marks = np.ones(end - start, dtype=np.bool_)
        if self.begin is not None:
            marks[self.offsets[first:last] - start] = False
        return marks

    @cached_property
    def sampling_order(self) -> list[int]:
        """Documents in the order of the hash of their names: any beginning of it is a fair sample."""
        return sorted(range(len(self)), key=lambda index: (position(self.ids[index]), self.ids[index]))

    def sample(self, max_tokens: int, *, longest: int | None = None) -> Iterator[StoredDocument]:
        """The same documents every time, until `max_tokens` tokens are reached; the last one may be cut.

        A document longer than `longest` tokens is cut there, so that a small budget still sees many documents; if None,
        that is max_tokens / 16 (at least 256), or no limit where the whole store fits the budget. Cut documents know
        their bytes exactly and have no end token.
        """
        left = max_tokens
        if longest is None:
            longest = max_tokens if len(self.tokens) <= max_tokens else max(256, max_tokens // 16)
        for index in self.sampling_order:
            limit = min(left, longest)
            if limit < 2:
                return
            document = self._cut(index, limit)
            if document is not None:
                left -= len(document.tokens)
                yield document

    def _cut(self, index: int, limit: int) -> StoredDocument | None:
        """Document `index` cut to at most `limit` tokens at the end of a character; None if nothing learnt is left."""
        document = self[index]
        if len(document.tokens) <= limit:
            return document
        if self._reach is None:
            return None
        start = int(self.offsets[index])
        reach = np.asarray(self._reach[start : start + limit])
        # Inside a character the reach stands still: the cut goes back to where it last rose.
        while limit > 1 and document.trained[limit - 1] and reach[limit - 1] == reach[limit - 2]:
            limit -= 1
        if limit < 2 or not document.trained[:limit].any() or not reach[limit - 1]:
            return None
        return StoredDocument(
            document.id, document.domain, document.tokens[:limit], document.trained[:limit], int(reach[limit - 1])
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a recipe as tokens; what it is, in words; what was left out of it (see `hayless.data.corpus`)."""

    train: TokenStore
    heldout: TokenStore
    description: str
    left_out: Notes = field(default_factory=Notes)


def prepare(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    kind: Kind,
    progress: Progress = no_progress,
) -> Prepared:
    """The data of `config` as token stores in `folder`; a second call with the same data and tokenizer reuses them.

    Raises what `hayless.data.corpus.corpus` raises; RequestError for conversations that the tokenizer's chat template
    does not render or rewrites as they go on; FileDamaged when a store on disk was altered or truncated.
    """
    name = hashlib.sha256(
        "\0".join([str(_FORMAT), fingerprint(config, kind), _tokenizer_name(tokenizer)]).encode()
    ).hexdigest()
    path = folder / f"tokens-{kind}-{name[:16]}"
    atomic.recover(path)
    if not path.is_dir():
        cleaned = corpus(config, folder, kind=kind, progress=progress)
        with atomic.folder(path) as partial:
            lines, refused = [cleaned.description], []
            for part, records in (("train", cleaned.train), ("heldout", cleaned.heldout)):
                encoded = encode_records(
                    records, tokenizer, partial / part, kind=kind, reach=part == "heldout", progress=progress
                )
                _finish(partial / part, encoded, tokenizer, kind, name)
                lines.append(_described(part, encoded))
                refused += encoded.refused
            templates.refuse(refused, tokenizer)
            about = {"description": "\n".join(lines), "left_out": cleaned.left_out.to_json()}
            atomic.write_json(partial / "prepared.json", about)
    about = atomic.read_json(path / "prepared.json")
    return Prepared(
        train=open_store(path / "train", name),
        heldout=open_store(path / "heldout", name),
        description=str(about["description"]),
        left_out=Notes.from_json(about["left_out"]),
    )


def store_of(
    chosen: Selection, tokenizer: PreTrainedTokenizerBase, folder: Path, *, progress: Progress = no_progress
) -> TokenStore:
    """Selected records as a store in `folder`, which must not exist yet; made for one look, not to be found again."""
    encoded = encode_records(chosen.records, tokenizer, folder, kind=chosen.kind, reach=True, progress=progress)
    templates.refuse(encoded.refused, tokenizer)
    _finish(folder, encoded, tokenizer, chosen.kind, made_from="")
    return TokenStore(folder, verify=False)


def open_store(folder: Path, made_from: str | None = None) -> TokenStore:
    """The store in `folder`; FileDamaged when it is not whole, or not made from what `made_from` names."""
    if made_from is not None and _about(folder).get("made_from") != made_from:
        raise FileDamaged(f"{folder} was made from other data than its name says.", hint=AGAIN)
    return TokenStore(folder)


def _finish(folder: Path, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, kind: Kind, made_from: str) -> None:
    """Write the tables beside the tokens that encoding has written, then the checksums of all."""
    np.save(folder / "offsets.npy", np.asarray(encoded.offsets, dtype=np.int64))
    np.save(folder / "bytes.npy", np.asarray(encoded.bytes, dtype=np.int64))
    domains = sorted(set(encoded.domains))
    numbers = {domain: number for number, domain in enumerate(domains)}
    documents = {"ids": encoded.ids, "domains": domains, "domain_of": [numbers[name] for name in encoded.domains]}
    atomic.write_json(folder / "documents.json", documents)
    about = {
        "format": _FORMAT,
        "kind": kind,
        "begin": begin_token(tokenizer, required=kind == "lm"),
        "end": end_token(tokenizer),
        "vocab_size": len(tokenizer),
        "notes": encoded.notes.to_json(),
        "made_from": made_from,
        "sha256": checksums(folder, _FILES),
    }
    atomic.write_json(folder / "store.json", about)


def _described(part: str, encoded: Encoded) -> str:
    tokens, size = encoded.offsets[-1], sum(encoded.bytes)
    title = "training" if part == "train" else "held out"
    line = f"{title}: {format_count(tokens)} tokens, of which {format_count(encoded.learnt)} are learnt"
    line += f" ({format_bytes(size)}, {size / max(1, encoded.learnt):.2f} bytes a token)"
    if END_INSIDE in encoded.notes:
        line += f"; {encoded.notes[END_INSIDE].count} documents hold the end token inside their text"
    return line


def _tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokens depend on: the tokenizer's whole definition, its special tokens and its chat template."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = repr((tokenizer.bos_token_id, tokenizer.eos_token_id))
    parts = [type(tokenizer).__name__, definition, special, repr(tokenizer.chat_template or templates.PLAIN)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    if not path.is_file():
        raise FileDamaged(f"{folder} is no token store: store.json is missing.", hint=AGAIN)
    about = atomic.read_json(path)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise FileDamaged(f"{path} is of another format than {_FORMAT}.", hint=AGAIN)
    return about


def _array(folder: Path, name: str) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FileDamaged(f"{folder / name} cannot be read: {error}.", hint=AGAIN) from error
    return found
