"""One request of the engine while it grows, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from hayless.core.errors import WorkError
from hayless.decode.options import SamplingOptions
from hayless.decode.text import StopStrings, TextStream

Finish = Literal["stop", "length", "end", "context", "cancelled"]
"""Why a text ended: a stop string, `max_tokens`, the model's end token, the end of the model's context, or because
nobody wants it any more."""


Top = tuple[tuple[int, float], ...]
"""The likeliest tokens at a place and their log-probabilities, the likeliest first."""


class Chosen(NamedTuple):
    """A token that a batch chose for a request, its log-probability, and as many of the likeliest as were asked for."""

    token: int
    logprob: float
    top: Top = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token: the text that it makes certain (often empty, never half a character), its log-probability.

    `logprob` and those of `top` are in nats, under the model as it is: before temperature and filters. `finish` is set
    on the last piece.
    """

    text: str
    token: int
    logprob: float
    finish: Finish | None
    top: Top = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text. `tokens` has everything generated, the end token included; `text` has no special tokens.

    `times` are seconds from the start of the request's batch until each token was there.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    tops: tuple[Top, ...]
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
    """One continuation while it grows. `budget` is the number of tokens it can get at most.

    `slot` is that of its adapter in the engine's bank; −1 is the model without any (see `hayless.decode.bank`).
    """

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
        self.slot = -1
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

    def take(self, chosen: Chosen, seconds: float) -> Piece:
        """Add a token; decide whether the text has ended."""
        token, logprob, top = chosen
        if logprob != logprob or abs(logprob) == float("inf"):
            raise WorkError(
                f"The model's output after {len(self.prompt) + len(self._pieces)} tokens is not finite.",
                hint="The weights are damaged, or overflow in this dtype: try float32.",
            )
        text, stopped = self._text(token)
        self.finish = self._ended(token, stopped)
        if self.finish and not stopped:
            text += self._flush()
        piece = Piece(text, token, logprob, self.finish, top)
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
            tops=tuple(piece.top for piece in self._pieces),
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


def top_of(tokens: Sequence[int], logprobs: Sequence[float], request: Request) -> Top:
    """As many of the likeliest tokens as a request asks for."""
    wanted = request.options.top_logprobs
    return tuple(zip(tokens[:wanted], logprobs[:wanted], strict=True))


class Batch(Protocol):
    """Requests that run side by side."""

    active: list[Request]

    @property
    def joinable(self) -> bool:
        """Whether requests can join while others run."""

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run; never between `next` and `drop_ended`."""

    def next(self) -> list[list[Chosen]]:
        """The next tokens of each active request, at least one."""

    def drop_ended(self) -> None:
        """Let requests with a `finish` leave."""
