"""Records as tokens on disk: the part of building a store that touches every byte of text.

Prompt and output are tokenized apart, as they are when a model answers a prompt, so a token never spans both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hayless.core.errors import WorkError
from hayless.core.progress import Progress
from hayless.data.corpus import Kind
from hayless.data.documents import Document
from hayless.data.examples import Example, Preference, Record
from hayless.data.tokenizer import begin_token, encode, encode_with_ends, end_token, in_batches

_COPY = 1 << 22


@dataclass(slots=True)
class Encoded:
    """The tables of a store; its arrays are in files. `learnt` counts trained tokens."""

    ids: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [0])
    learnt: int = 0
    spelt_out: int = 0


@dataclass(frozen=True, slots=True)
class _Text:
    """One stored document before tokenizing; `prompt` is not learnt."""

    id: str
    domain: str
    prompt: str
    learnt: str


def encode_records(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    kind: Kind,
    reach: bool,
    progress: Progress,
) -> Encoded:
    """Write `tokens.npy`, and where they are needed `trained.npy` and `reach.npy`, for `records` into a new folder."""
    folder.mkdir()
    texts = [text for record in records for text in _texts(record)]
    begin = begin_token(tokenizer, required=kind == "lm")
    end = end_token(tokenizer)
    lead = [] if begin is None else [begin]
    encoded = Encoded()
    width = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    with (
        _Growing(folder / "tokens.npy", width) as tokens_file,
        _Growing(folder / "trained.npy", np.dtype(np.bool_), wanted=kind != "lm") as trained_file,
        _Growing(folder / "reach.npy", np.dtype(np.int64), wanted=reach) as reach_file,
    ):
        for part in in_batches([text.prompt + text.learnt for text in texts]):
            batch = [texts[index] for index in part]
            prompts = encode(tokenizer, [text.prompt for text in batch])
            learnt = [text.learnt for text in batch]
            if reach:
                bodies, ends = encode_with_ends(tokenizer, learnt)
            else:
                bodies, ends = encode(tokenizer, learnt), [[] for _ in batch]
            for text, prompt, body, body_ends in zip(batch, prompts, bodies, ends, strict=True):
                before = len(lead) + len(prompt)
                size = len(text.learnt.encode())
                tokens_file.append([*lead, *prompt, *body, end])
                trained_file.append([False] * before + [True] * (len(body) + 1))
                reach_file.append([0] * before + [*body_ends, size])
                encoded.ids.append(text.id)
                encoded.domains.append(text.domain)
                encoded.bytes.append(size)
                encoded.offsets.append(encoded.offsets[-1] + before + len(body) + 1)
                encoded.learnt += len(body) + 1
                encoded.spelt_out += end in body or end in prompt
            progress("tokenizing", part.stop, len(texts))
    return encoded


def _texts(record: Record) -> list[_Text]:
    if isinstance(record, Document):
        return [_Text(record.id, record.domain, "", record.text)]
    if isinstance(record, Example):
        return [_Text(record.id, record.domain, record.prompt, record.output)]
    assert isinstance(record, Preference)
    answers = (("chosen", record.chosen), ("rejected", record.rejected))
    return [_Text(f"{record.id}#{name}", record.domain, record.prompt, answer) for name, answer in answers]


class _Growing:
    """An .npy file of unknown length: written raw beside, then copied behind the right header. Memory stays flat."""

    def __init__(self, path: Path, dtype: np.dtype[Any], *, wanted: bool = True) -> None:
        self._path = path
        self._dtype = dtype
        self._raw = path.with_suffix(".raw")
        self._wanted = wanted
        self._file: BinaryIO | None = None
        self._length = 0

    def __enter__(self) -> _Growing:
        if self._wanted:
            self._file = self._raw.open("wb")
        return self

    def append(self, values: Sequence[int]) -> None:
        """Add values at the end; nothing happens where the file is not wanted."""
        if self._file is not None:
            self._file.write(np.asarray(values, dtype=self._dtype).tobytes())
            self._length += len(values)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._file is None:
            return
        self._file.close()
        if error is None and not self._length:
            raise WorkError(f"{self._path} would be empty.")
        if error is None:
            target = np.lib.format.open_memmap(self._path, mode="w+", dtype=self._dtype, shape=(self._length,))
            source: NDArray[Any] = np.memmap(self._raw, dtype=self._dtype, mode="r")
            for start in range(0, self._length, _COPY):
                target[start : start + _COPY] = source[start : start + _COPY]
            target.flush()
            del source, target
        self._raw.unlink(missing_ok=True)
