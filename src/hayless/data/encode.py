"""Records as tokens on disk: the part of building a store that touches every byte of text.

Prompt and output of an example are tokenized apart, as they are when a model answers a prompt, so a token never spans
both. A conversation is rendered by its template and tokenized whole, as transformers does (`apply_chat_template`), the
template's special tokens included; no begin or end token is added to what it writes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hayless.core.progress import Progress
from hayless.data import templates
from hayless.data.chats import ChatPreference, Conversation, as_text
from hayless.data.corpus import Kind
from hayless.data.documents import Document
from hayless.data.examples import Example, Preference, Record
from hayless.data.notes import Notes
from hayless.data.templates import ChatTemplate
from hayless.data.tokenizer import (
    BATCH_CHARACTERS,
    begin_token,
    byte_sizes,
    clean_ends,
    encode,
    encode_rendered,
    encode_with_ends,
    end_token,
)

END_INSIDE = "end_inside"
SPECIAL_AS_TEXT = "special_as_text"
SPECIAL_IN_CHAT = "special_in_chat"
BEGIN_SPELT = "begin_spelt"
TURN_INSIDE_TOKEN = "turn_inside_token"


@dataclass(slots=True)
class Encoded:
    """The tables of a store; its arrays are in files. `learnt` counts trained tokens; `refused` are conversations that
    the chat template does not render, or rewrites as they go on, with the reasons; they are in no file.

    `notes`, what was noticed in the texts: the end token comes out of a text (`end_inside`); a text spells out special
    tokens, which it then has as plain text (`special_as_text`), or as the tokens themselves where a template took it
    in (`special_in_chat`); a text begins with the begin token spelt out (`begin_spelt`); a turn of the assistant starts
    in the middle of a token (`turn_inside_token`).
    """

    ids: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [0])
    learnt: int = 0
    notes: Notes = field(default_factory=Notes)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Text:
    """One stored document before tokenizing; `prompt` is not learnt."""

    id: str
    domain: str
    prompt: str
    learnt: str

    @property
    def text(self) -> str:
        return self.prompt + self.learnt


_Part = _Text | Conversation


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One document as it is stored: tokens; which are learnt, and bytes reached at each (empty where that is not
    written); how many are learnt, and the bytes of them."""

    tokens: Sequence[int]
    trained: Sequence[bool] | NDArray[np.bool_]
    reach: Sequence[int] | NDArray[np.int64]
    learnt: int
    bytes: int


class Records(Protocol):
    """Records that can be counted and gone through, from memory or from a file."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Record]: ...


def encode_records(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    kind: Kind,
    reach: bool,
    progress: Progress,
) -> Encoded:
    """Write `tokens.npy`, and where they are needed `trained.npy` and `reach.npy`, for `records` into a new folder."""
    folder.mkdir()
    encoded = Encoded()
    work = _Encoder(tokenizer, kind, reach, encoded)
    width = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    done = 0
    with (
        _Growing(folder / "tokens.npy", width) as tokens_file,
        _Growing(folder / "trained.npy", np.dtype(np.bool_), wanted=kind != "lm") as trained_file,
        _Growing(folder / "reach.npy", np.dtype(np.int64), wanted=reach) as reach_file,
    ):
        for taken, batch in _batches(records):
            for part, made in zip(batch, work.encode(batch), strict=True):
                if made is None:
                    continue
                tokens_file.append(made.tokens)
                trained_file.append(made.trained)
                reach_file.append(made.reach)
                encoded.ids.append(part.id)
                encoded.domains.append(part.domain)
                encoded.bytes.append(made.bytes)
                encoded.offsets.append(encoded.offsets[-1] + len(made.tokens))
                encoded.learnt += made.learnt
            done += taken
            progress("tokenizing", done, len(records))
    return encoded


class _Encoder:
    """Batches of texts and conversations as tokens; gathers what is noticed and what is refused on the way."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: Kind, reach: bool, encoded: Encoded) -> None:
        self._tokenizer = tokenizer
        self._whole = kind == "lm"
        self._reach = reach
        begin = begin_token(tokenizer, required=self._whole)
        self._lead = [] if begin is None else [begin]
        self._end = end_token(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._special = np.zeros(max([len(tokenizer), *(number + 1 for number in added)]), dtype=np.bool_)
        special = [number for number, token in added.items() if token.special and number != tokenizer.unk_token_id]
        self._special[special] = True
        spelt = sorted({token.content for token in added.values() if token.special}, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, spelt)) or "(?!)")
        self._notes = encoded.notes
        self._refused = encoded.refused
        self._template = ChatTemplate(tokenizer)

    def encode(self, batch: Sequence[_Part]) -> list[_Tokens | None]:
        """Each part as tokens, in order; None where it was refused."""
        texts = iter(self._texts([part for part in batch if isinstance(part, _Text)]))
        chats = iter(self._chats([part for part in batch if isinstance(part, Conversation)]))
        return [next(texts) if isinstance(part, _Text) else next(chats) for part in batch]

    def _texts(self, batch: Sequence[_Text]) -> Iterator[_Tokens]:
        prompts: list[list[int]] = [[]] * len(batch)
        if not self._whole:
            prompts = encode(self._tokenizer, [text.prompt for text in batch])
        learnt = [text.learnt for text in batch]
        if self._reach:
            bodies, ends = encode_with_ends(self._tokenizer, learnt)
        else:
            bodies, ends = encode(self._tokenizer, learnt), [[] for _ in batch]
        for text, prompt, body, body_ends in zip(batch, prompts, bodies, ends, strict=True):
            before = len(self._lead) + len(prompt)
            size = len(text.learnt.encode())
            if self._end in body or self._end in prompt:
                self._notes.add(END_INSIDE, text.id)
            if spelt := self._spelt.search(text.text):
                begins = spelt.start() == 0 and spelt[0] == self._tokenizer.bos_token
                self._notes.add(BEGIN_SPELT if begins else SPECIAL_AS_TEXT, text.id)
            yield _Tokens(
                [*self._lead, *prompt, *body, self._end],
                () if self._whole else [False] * before + [True] * (len(body) + 1),
                [0] * before + [*body_ends, size] if self._reach else (),
                len(body) + 1,
                size,
            )

    def _chats(self, batch: Sequence[Conversation]) -> Iterator[_Tokens | None]:
        rendered: list[templates.Rendered | None] = []
        for conversation in batch:
            try:
                rendered.append(self._rendered(conversation))
            except templates.Refused as error:
                self._refused.append((conversation.id, str(error)))
                rendered.append(None)
        texts = [found.text for found in rendered if found is not None]
        encodings = iter(zip(*encode_rendered(self._tokenizer, texts), strict=True))
        for conversation, found in zip(batch, rendered, strict=True):
            if self._spelt.search(as_text(conversation.messages)):
                self._notes.add(SPECIAL_IN_CHAT, conversation.id)
            yield None if found is None else self._chat(conversation.id, found, *next(encodings))

    def _rendered(self, conversation: Conversation) -> templates.Rendered:
        if not self._whole:
            return self._template.rendered(conversation)
        text = self._template.render(conversation.messages, conversation.tools)
        return templates.Rendered(text, ((0, len(text)),))

    def _chat(self, name: str, rendered: templates.Rendered, ids: list[int], spans: NDArray[np.int64]) -> _Tokens:
        """A rendered conversation's tokens (n,), which lie at the characters `spans` (n, 2) of its text."""
        tokens = np.asarray(ids, dtype=np.int64)
        starts, ends = spans.T
        trained = np.zeros(len(tokens), dtype=np.bool_)
        said = np.zeros(len(rendered.text), dtype=np.bool_)
        split = False
        for first, last in rendered.spans:
            # A token of white space may have no characters of its own: where it stands counts.
            trained |= (starts < last) & ((ends > first) | (starts >= first))
            said[first:last] = True
            split |= bool(((starts < first) & (ends > first)).any())
        if split:
            self._notes.add(TURN_INSIDE_TOKEN, name)
        for start, end in spans[self._special[tokens]]:
            said[start:end] = False
        reached = np.concatenate([[0], np.cumsum(byte_sizes(rendered.text) * said)])
        reach = reached[clean_ends(spans, len(rendered.text))] if self._reach else np.zeros(0, dtype=np.int64)
        if self._whole:
            before, after = ids[:1] != self._lead, ids[-1:] != [self._end]
            ids = [*self._lead * before, *ids, *[self._end] * after]
            if self._reach:
                reach = np.pad(reach, (int(before), int(after)), constant_values=(0, reached[-1]))
        learnt = len(ids) - 1 if self._whole else int(np.count_nonzero(trained))
        return _Tokens(ids, trained, reach, learnt, int(reached[-1]))


def _batches(records: Iterable[Record]) -> Iterator[tuple[int, list[_Part]]]:
    """(records, their parts), some million characters at a time: enough for all cores, little for memory."""
    batch: list[_Part] = []
    size = taken = 0
    for record in records:
        parts = _parts(record)
        batch += parts
        taken += 1
        size += sum(len(part.text) for part in parts)
        if size >= BATCH_CHARACTERS:
            yield taken, batch
            batch, size, taken = [], 0, 0
    if batch:
        yield taken, batch


def _parts(record: Record) -> list[_Part]:
    if isinstance(record, Document):
        return [_Text(record.id, record.domain, "", record.text)]
    if isinstance(record, Example):
        return [_Text(record.id, record.domain, record.prompt, record.output)]
    if isinstance(record, Conversation):
        return [record]
    if isinstance(record, ChatPreference):
        return list(record.answers())
    assert isinstance(record, Preference)
    answers = (("chosen", record.chosen), ("rejected", record.rejected))
    return [_Text(f"{record.id}#{name}", record.domain, record.prompt, answer) for name, answer in answers]


class _Growing:
    """An .npy file of a length that is known at its end only: its header is written again then. Memory stays flat."""

    def __init__(self, path: Path, dtype: np.dtype[Any], *, wanted: bool = True) -> None:
        self._path = path
        self._dtype = dtype
        self._wanted = wanted
        self._file: BinaryIO | None = None
        self._length = 0

    def __enter__(self) -> _Growing:
        if self._wanted:
            self._file = self._path.open("wb")
            self._file.write(self._header(0))
        return self

    def append(self, values: Sequence[int] | NDArray[Any]) -> None:
        """Add values at the end; nothing happens where the file is not wanted."""
        if self._file is not None:
            self._file.write(np.asarray(values, dtype=self._dtype).tobytes())
            self._length += len(values)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._file is not None:
            with self._file:
                self._file.seek(0)
                self._file.write(self._header(self._length))

    def _header(self, length: int) -> bytes:
        """The header of an array of so many values; numpy leaves room for the length to grow (since 1.23)."""
        out = io.BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(out, about)
        return out.getvalue()
