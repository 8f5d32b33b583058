"""Generating text with a causal language model: one loop over transformers' own modules and a growing cache.

Prompts of a batch are padded on the left, with explicit positions and mask, so a request gets the tokens it would get
alone (to rounding). A request that ends leaves the batch. Shapes: b requests, s tokens, v entries of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.decode.options import SamplingOptions
from hayless.decode.sampling import distribution, draw
from hayless.decode.text import StopStrings, TextStream

Prompt = str | Sequence[int]
"""Text, or token ids (taken as they are: nothing is put before them)."""

Finish = Literal["stop", "length", "end", "context"]
"""Why a text ended: a stop string, `max_tokens`, the model's end token, or the end of the model's context."""


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


class Engine:
    """Generates with `model`, on the device and in the dtype it has. Without a tokenizer, prompts are token ids.

    NotSupported for a model that is no causal language model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        if model.config.is_encoder_decoder or not model.can_generate():
            raise NotSupported(
                f"{type(model).__name__} does not continue text; the engine takes causal language models.",
                hint="Load the model as a causal language model.",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.end_tokens = _end_tokens(model, tokenizer)

    def stream(self, prompt: Prompt, options: SamplingOptions | None = None) -> Iterator[Piece]:
        """The continuation of `prompt`, token by token. RequestError for a prompt that does not fit the context."""
        request = self._request(prompt, options or SamplingOptions())
        return self._stream(request)

    def generate(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        *,
        batch_size: int = 16,
    ) -> list[Generation]:
        """The continuation of each prompt, in order, `batch_size` at a time.

        `options` is one for all or one a prompt. A request's draws are a function of its own seed: equal prompts with
        equal options get equal texts. RequestError, before anything is computed, for a prompt that cannot be continued.
        """
        if isinstance(prompts, str):
            raise RequestError("generate takes a list of prompts, not one text.", hint="Give [text], or use stream.")
        if batch_size < 1:
            raise RequestError(f"batch_size = {batch_size} is not possible; allowed: 1 or more.")
        each = _one_each(options, len(prompts))
        requests = [self._request(prompt, chosen) for prompt, chosen in zip(prompts, each, strict=True)]
        with evaluating(self.model):
            for start in range(0, len(requests), batch_size):
                for _ in self._steps(requests[start : start + batch_size]):
                    pass
        return [request.generation() for request in requests]

    def _stream(self, request: _Request) -> Iterator[Piece]:
        with evaluating(self.model):
            yield from self._steps([request])

    def _request(self, prompt: Prompt, options: SamplingOptions) -> _Request:
        ids = self._encode(prompt)
        limit = self.context
        if limit is not None and len(ids) >= limit:
            raise RequestError(
                f"The prompt has {len(ids)} tokens; the model's context holds {limit}, what is generated included.",
                hint="Shorten the prompt.",
            )
        if options.stop and self.tokenizer is None:
            raise RequestError("Stop strings need a tokenizer.", hint="Give the engine the model's tokenizer.")
        return _Request(ids, options, self.tokenizer, self.end_tokens, limit)

    def _encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; an empty one becomes the begin token (or the end token where there is no other)."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("A text prompt needs a tokenizer.", hint="Give the engine one, or give token ids.")
            ids = list(self.tokenizer(prompt)["input_ids"])
        else:
            ids = list(prompt)
        ids = ids or [self._begin_token()]
        entries = self.model.config.vocab_size
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < entries:
                raise RequestError(
                    f"Token {token!r} of the prompt is not one of the model's {entries} (0 to {entries - 1}).",
                    hint="Does the tokenizer belong to this model?",
                )
        return ids

    def _begin_token(self) -> int:
        owners = [owner for owner in (self.tokenizer, self.model.config) if owner is not None]
        for name in ("bos_token_id", "eos_token_id"):
            for owner in owners:
                token = getattr(owner, name, None)
                if isinstance(token, int):
                    return token
        raise RequestError("The prompt is empty, and the model has no begin or end token to start from.")

    def _steps(self, requests: Sequence[_Request]) -> Iterator[Piece]:
        """Run requests side by side until all have ended; yields every piece as it is made."""
        start = time.perf_counter()
        active = list(requests)
        batch = _Batch(self.model, [request.prompt for request in active])
        while active:
            logits_bv = batch.forward()
            tokens_b, logprobs_b = _choose(logits_bv, active)
            chosen = list(zip(active, tokens_b.tolist(), logprobs_b.tolist(), strict=True))
            elapsed = time.perf_counter() - start
            for request, token, logprob in chosen:
                yield request.take(token, logprob, elapsed)
            going = [row for row, request in enumerate(active) if request.finish is None]
            active = [active[row] for row in going]
            batch.advance(tokens_b, going)


class _Batch:
    """The running state of a batch on the device: next inputs, their positions, the mask, the cache."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        device = model.device
        longest = max(map(len, prompts))
        ids_bs = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_bs = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_bs[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_bs[row, longest - len(prompt) :] = 1
        self._ids_bs = ids_bs.to(device)
        self._mask_bs = mask_bs.to(device)
        self._positions_bs = (self._mask_bs.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def forward(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""
        output = self._model(
            input_ids=self._ids_bs,
            attention_mask=self._mask_bs,
            position_ids=self._positions_bs,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    @torch.inference_mode()
    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave the cache."""
        if len(going) < len(tokens_b):
            rows = torch.tensor(going, dtype=torch.long, device=tokens_b.device)
            self._cache.batch_select_indices(rows)
            tokens_b, self._mask_bs = tokens_b[rows], self._mask_bs[rows]
            self._positions_bs = self._positions_bs[rows]
        self._ids_bs = tokens_b[:, None]
        self._positions_bs = self._positions_bs[:, -1:] + 1
        self._mask_bs = torch.cat([self._mask_bs, self._mask_bs.new_ones(len(going), 1)], dim=1)


class _Request:
    """One continuation while it grows."""

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
        self._pieces: list[Piece] = []
        self._times: list[float] = []

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


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, so that dropout is off; each gets its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.inference_mode()
def _choose(logits_bv: Tensor, requests: Sequence[_Request]) -> tuple[Tensor, Tensor]:
    """The next token (b,) of each request, and its log-probability (b,) under the model as it is."""
    tokens_b = logits_bv.argmax(-1)
    for options in dict.fromkeys(request.options for request in requests if request.options.temperature > 0):
        rows = [row for row, request in enumerate(requests) if request.options == options]
        probs_bv = distribution(logits_bv[rows], options)
        tokens_b[rows] = draw(probs_bv, [requests[row].generator for row in rows])
    logprobs_b = logits_bv.log_softmax(-1).gather(-1, tokens_b[:, None]).squeeze(1)
    return tokens_b, logprobs_b


def _one_each(options: SamplingOptions | Sequence[SamplingOptions] | None, count: int) -> Sequence[SamplingOptions]:
    if options is None or isinstance(options, SamplingOptions):
        return [options or SamplingOptions()] * count
    if len(options) != count:
        raise RequestError(
            f"There are {len(options)} sets of options for {count} prompts.", hint="Give one, or one each."
        )
    return options


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The tokens that end a text, by the generation config (or the config), and by the tokenizer."""
    generation = getattr(model, "generation_config", None)
    named = generation.eos_token_id if generation is not None and generation.eos_token_id is not None else None
    named = model.config.eos_token_id if named is None else named
    found = set(named) if isinstance(named, list | tuple) else {named}
    found.add(getattr(tokenizer, "eos_token_id", None))
    return frozenset(int(token) for token in found if token is not None)
