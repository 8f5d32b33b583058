"""One request of the engine while it grows, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from hayless.core.errors import WorkError
from hayless.decode.options import SamplingOptions
from hayless.decode.text import StopStrings, TextStream

Finish = Literal["stop", "length", "end", "context", "cancelled"]
"""Why a text ended: a stop string, `max_tokens`, the model's end token, the end of the model's context, or because
nobody wants it any more."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token: the text that it makes certain (often empty, never half a character), its log-probability.

    `logprob` is in nats, under the model as it is: before temperature and filters. `finish` is set on the last piece.
    """

    text: str
    token: int
    logprob: float
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text. `tokens` has everything generated, the end token included; `text` has no special tokens.

    `times` are seconds from the start of the request's batch until each token was there.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    prompt_tokens: int
    times: tuple[float, ...]

    @property
    def first_token_seconds(self) -> float:
        """Seconds until the first token."""
        return self.times[0]

    @property
    def seconds_per_token(self) -> float | None:
        """Mean seconds of each token after the first; None for a single token."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None


class Request:
    """One continuation while it grows. `budget` is the number of tokens it can get at most."""

    def __init__(
        self,
        prompt: list[int],
        options: SamplingOptions,
        tokenizer: PreTrainedTokenizerBase | None,
        end_tokens: frozenset[int],
        context: int | None,
    ) -> None:
        self.prompt = prompt
        self.options = options
        self.finish: Finish | None = None
        self.generator = torch.Generator().manual_seed(options.seed)
        self._end_tokens = frozenset() if options.ignore_end else end_tokens
        self._context = context
        self._decoder = TextStream(tokenizer, prompt) if tokenizer is not None else None
        self._stop = StopStrings(options.stop)
        room = options.max_tokens if context is None else context - len(prompt)
        self.budget = min(options.max_tokens, room)
        self._pieces: list[Piece] = []
        self._times: list[float] = []

    @property
    def made(self) -> int:
        """Tokens it has got."""
        return len(self._pieces)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and continuation at most."""
        return len(self.prompt) + self.budget

    def take(self, token: int, logprob: float, seconds: float) -> Piece:
        """Add a token; decide whether the text has ended."""
        if logprob != logprob or abs(logprob) == float("inf"):
            raise WorkError(
                f"The model's output after {len(self.prompt) + len(self._pieces)} tokens is not finite.",
                hint="The weights are damaged, or overflow in this dtype: try float32.",
            )
        text, stopped = self._text(token)
        self.finish = self._ended(token, stopped)
        if self.finish and not stopped:
            text += self._flush()
        piece = Piece(text, token, logprob, self.finish)
        self._pieces.append(piece)
        self._times.append(seconds)
        return piece

    def generation(self) -> Generation:
        """The finished text."""
        assert self.finish is not None
        return Generation(
            text="".join(piece.text for piece in self._pieces),
            tokens=tuple(piece.token for piece in self._pieces),
            logprobs=tuple(piece.logprob for piece in self._pieces),
            finish=self.finish,
            prompt_tokens=len(self.prompt),
            times=tuple(self._times),
        )

    def _ended(self, token: int, stopped: bool) -> Finish | None:
        if stopped:
            return "stop"
        if token in self._end_tokens:
            return "end"
        generated = len(self._pieces) + 1
        if generated >= self.options.max_tokens:
            return "length"
        if self._context is not None and len(self.prompt) + generated >= self._context:
            return "context"
        return None

    def _text(self, token: int) -> tuple[str, bool]:
        return self._stop.push(self._decoder.push(token)) if self._decoder else ("", False)

    def _flush(self) -> str:
        if self._decoder is None:
            return ""
        text, stopped = self._stop.push(self._decoder.finish())
        return text if stopped else text + self._stop.finish()


class Batch(Protocol):
    """Requests that run side by side."""

    active: list[Request]

    @property
    def joinable(self) -> bool:
        """Whether requests can join while others run."""

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run; never between `next` and `drop_ended`."""

    def next(self) -> list[list[tuple[int, float]]]:
        """The next tokens of each active request, at least one, and their log-probabilities."""

    def drop_ended(self) -> None:
        """Let requests with a `finish` leave."""
