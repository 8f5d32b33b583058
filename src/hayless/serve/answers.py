"""What this server answers with: OpenAI's objects, made from streams of tokens."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from hayless.core.errors import HaylessError
from hayless.decode.request import Finish, Piece
from hayless.serve.service import Stream

_REASONS: dict[Finish, str] = {
    "stop": "stop",
    "end": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "stop",
}
DONE = "data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """One request's streams, `choices` of each prompt in turn, and what its answer calls itself."""

    model: str
    streams: Sequence[Stream]
    kind: Kind
    choices: int
    tokenizer: PreTrainedTokenizerBase
    logprobs: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, name: str) -> dict[str, Any]:
        """What every object of this answer begins with."""
        return {"id": f"{self.kind.prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece. HaylessError where a stream ends with one."""
        choices = []
        for index, stream in enumerate(self.streams):
            pieces = [piece async for piece in pieces_of(stream)]
            text = "".join(piece.text for piece in pieces)
            logprobs = self._logprobs(pieces)
            choices.append(
                {
                    "index": index,
                    **self.kind.choice(text),
                    "logprobs": logprobs,
                    "finish_reason": reason(pieces[-1]),
                }
            )
        return {**self.head(self.kind.name), "choices": choices, "usage": self.usage()}

    async def events(self, *, usage: bool) -> AsyncIterator[str]:
        """Server-sent events: a chunk for each token, of all choices as they come; the last says that it is."""
        for opening in self.kind.openings:
            for index in range(len(self.streams)):
                yield self._chunk(index, opening, None, None)
        async for index, piece in _merged(self.streams):
            text = self.kind.delta(piece.text)
            # A token that completes no character says nothing, unless its probability is wanted.
            if piece.text or piece.finish or self.logprobs:
                yield self._chunk(index, text, self._logprobs([piece]), reason(piece))
        if usage:
            yield event({**self.head(self.kind.chunk), "choices": [], "usage": self.usage()})
        yield DONE

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, each once, and of all continuations."""
        read = sum(len(stream.request.prompt) for stream in self.streams[:: self.choices])
        made = sum(stream.request.made for stream in self.streams)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _chunk(self, index: int, said: dict[str, Any], logprobs: Any, finish: str | None) -> str:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        return event({**self.head(self.kind.chunk), "choices": [choice]})

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return self.kind.logprobs(
            [self._word(piece.token, piece.logprob) for piece in pieces],
            [[self._word(*one) for one in piece.top] for piece in pieces],
        )

    def _word(self, token: int, logprob: float) -> Word:
        return Word(str(self.tokenizer.decode([token])), logprob)


class Word(NamedTuple):
    """A token in letters, and its log-probability."""

    text: str
    logprob: float


class Kind(Protocol):
    """How one of the two kinds of requests is answered."""

    name: str
    chunk: str
    prefix: str
    openings: Sequence[dict[str, Any]]

    def choice(self, text: str) -> dict[str, Any]:
        """What holds a whole text."""

    def delta(self, text: str) -> dict[str, Any]:
        """What holds a piece of it."""

    def logprobs(self, words: Sequence[Word], tops: Sequence[Sequence[Word]]) -> dict[str, Any]:
        """Log-probabilities of the tokens that were taken, and of the likeliest at each place, where they were asked
        for."""


class Completion:
    """Of /v1/completions."""

    name = chunk = "text_completion"
    prefix = "cmpl"
    openings: Sequence[dict[str, Any]] = ()

    def choice(self, text: str) -> dict[str, Any]:
        """What holds a whole text."""
        return {"text": text}

    delta = choice

    def logprobs(self, words: Sequence[Word], tops: Sequence[Sequence[Word]]) -> dict[str, Any]:
        """Of the tokens that were taken, which join the likeliest where they are not among them."""
        texts = [word.text for word in words]
        likeliest = None
        if any(tops):
            likeliest = [_by_text([*top, word]) for word, top in zip(words, tops, strict=True)]
        return {
            "tokens": texts,
            "token_logprobs": [word.logprob for word in words],
            "top_logprobs": likeliest,
            "text_offset": [len("".join(texts[:number])) for number in range(len(texts))],
        }


class Chat:
    """Of /v1/chat/completions."""

    name, chunk = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"
    openings: Sequence[dict[str, Any]] = ({"delta": {"role": "assistant", "content": ""}},)

    def choice(self, text: str) -> dict[str, Any]:
        """What holds a whole text."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str) -> dict[str, Any]:
        """What holds a piece of it."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, words: Sequence[Word], tops: Sequence[Sequence[Word]]) -> dict[str, Any]:
        """Of the tokens that were taken, and of the likeliest."""
        content = [
            {**self._entry(word), "top_logprobs": list(map(self._entry, top))}
            for word, top in zip(words, tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, word: Word) -> dict[str, Any]:
        return {"token": word.text, "logprob": word.logprob, "bytes": list(word.text.encode())}


def _by_text(words: Sequence[Word]) -> dict[str, float]:
    """Log-probabilities by tokens in letters; of tokens that look alike, that of the first."""
    found: dict[str, float] = {}
    for word in words:
        found.setdefault(word.text, word.logprob)
    return found


def reason(piece: Piece) -> str | None:
    """OpenAI's word for why a text ended."""
    return _REASONS[piece.finish] if piece.finish else None


async def pieces_of(stream: Stream) -> AsyncIterator[Piece]:
    """The tokens of a stream until its last; HaylessError where it ends with one."""
    while True:
        found = await stream.events.get()
        if isinstance(found, HaylessError):
            raise found
        yield found
        if found.finish:
            return


async def _merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Piece]]:
    """Tokens of several streams as they come, with their streams' numbers."""
    if len(streams) == 1:
        async for piece in pieces_of(streams[0]):
            yield 0, piece
        return
    going = {asyncio.ensure_future(stream.events.get()): index for index, stream in enumerate(streams)}
    try:
        while going:
            done, _ = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda one: going[one]):
                index, found = going.pop(task), task.result()
                if isinstance(found, HaylessError):
                    raise found
                yield index, found
                if not found.finish:
                    going[asyncio.ensure_future(streams[index].events.get())] = index
    finally:
        for task in going:
            task.cancel()


def event(document: dict[str, Any]) -> str:
    """A document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"
