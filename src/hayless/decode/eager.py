"""A running batch without graphs: through transformers' own modules, or through a decode program.

A request that ends leaves the batch, and others may join it between two tokens. Shapes: b requests, s tokens, v entries
of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hayless.decode.readers import Reader
from hayless.decode.request import Chosen, Request, Top, top_of
from hayless.decode.sampling import distribution, draw, likeliest

Beside = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Within it, a reader computes rows with the adapters of these slots."""


class EagerBatch:
    """Chooses each token on the host's schedule."""

    def __init__(self, reader: Reader, requests: Sequence[Request], beside: Beside | None = None) -> None:
        self.active: list[Request] = []
        self._reader = reader
        self._beside = beside
        self._joining: list[Request] = []
        self._tokens_b: Tensor | None = None
        self.join(requests)

    @property
    def joinable(self) -> bool:
        """Whether requests can join while others run."""
        return self._reader.keeps_all

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run; never between `next` and `drop_ended`."""
        self.active += requests
        self._joining += requests

    def next(self) -> list[list[Chosen]]:
        """The next token of each active request."""
        self._tokens_b, logprobs_bv = choose(self._logits(), self.active)
        logprobs_b = logprobs_bv.gather(-1, self._tokens_b[:, None])[:, 0]
        rows = zip(self._tokens_b.tolist(), logprobs_b.tolist(), tops(logprobs_bv, self.active), strict=True)
        return [[Chosen(*row)] for row in rows]

    def drop_ended(self) -> None:
        """Let requests with a `finish` leave; the others go on from the tokens they got."""
        going = [row for row, request in enumerate(self.active) if request.finish is None]
        if len(going) == len(self.active):
            return
        self.active = [self.active[row] for row in going]
        self._reader.select(going)
        assert self._tokens_b is not None
        self._tokens_b = self._tokens_b[going] if going else None

    def _logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row: of those that run, then of those that join."""
        parts = []
        if self._tokens_b is not None:
            with self._adapters_of(self.active[: len(self._tokens_b)]):
                parts.append(self._reader.read(self._tokens_b[:, None])[:, -1])
        if self._joining:
            with self._adapters_of(self._joining):
                parts.append(self._reader.join([request.prompt for request in self._joining]))
            self._joining = []
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _adapters_of(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        return nullcontext() if self._beside is None else self._beside([request.slot for request in requests])


@torch.inference_mode()
def choose(logits_bv: Tensor, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """The next token (b,) of each request, and all log-probabilities (b, v) under the model as it is."""
    tokens_b = likeliest(logits_bv)
    for options in dict.fromkeys(request.options for request in requests if request.options.temperature > 0):
        rows = [row for row, request in enumerate(requests) if request.options == options]
        probs_bv = distribution(logits_bv[rows], options)
        tokens_b[rows] = draw(probs_bv, [requests[row].generator for row in rows])
    return tokens_b, logits_bv.log_softmax(-1)


def tops(logprobs_bv: Tensor, requests: Sequence[Request]) -> list[Top]:
    """The likeliest tokens of each row, as many as its request asks for, from log-probabilities (b, v)."""
    most = min(max(request.options.top_logprobs for request in requests), logprobs_bv.shape[-1])
    if not most:
        return [()] * len(requests)
    values_bn, tokens_bn = logprobs_bv.topk(most)
    return [
        top_of(tokens, values, request)
        for tokens, values, request in zip(tokens_bn.tolist(), values_bn.tolist(), requests, strict=True)
    ]
