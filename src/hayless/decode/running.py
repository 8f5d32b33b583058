"""Continuous batching: requests join and leave while others run.

    running = engine.open(rows=64, tokens=4096)
    running.add(engine.request("Once upon a time", options))
    while running.busy:
        for request, piece in running.step():
            ...

A request's tokens are those it gets alone, to rounding (Yu et al., Orca, OSDI 2022, schedule by iteration in the same
way). Not safe for use by several threads at once.
"""

from __future__ import annotations

import time
from collections import deque

from hayless.core.errors import RequestError, WorkError
from hayless.decode.request import Batch, Piece, Request

_JOINING_TOKENS = 4096
"""Tokens of prompts that are read between two tokens of the requests that run."""


class Running:
    """A batch with room for `rows` requests of at most `tokens` tokens each, prompt and continuation together.

    Requests that are `waiting` take their turn as rows become free.
    """

    def __init__(self, batch: Batch, rows: int, tokens: int) -> None:
        self.rows, self.tokens = rows, tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._batch = batch
        self._start = time.perf_counter()

    @property
    def busy(self) -> bool:
        """Whether any request runs or waits."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Let a request take its turn. RequestError for one that is longer than a row."""
        check_length(request, self.tokens)
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Let a request leave before it has ended; nothing for one that has."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request.finish is None:
            request.finish = "cancelled"

    def step(self) -> list[tuple[Request, Piece | WorkError]]:
        """One token more for every request that has a row; an error in its place ends that request alone."""
        self._let_in()
        if not self.running:
            return []
        chosen = self._batch.next()
        elapsed = time.perf_counter() - self._start
        made: list[tuple[Request, Piece | WorkError]] = []
        for request, tokens in zip(list(self._batch.active), chosen, strict=True):
            for token in tokens:
                if request.finish is not None:
                    break
                try:
                    made.append((request, request.take(token, elapsed)))
                except WorkError as error:
                    request.finish = "cancelled"
                    made.append((request, error))
        self._batch.drop_ended()
        self.running = [request for request in self.running if request.finish is None]
        return made

    def _let_in(self) -> None:
        """Give rows to the requests that have waited longest."""
        if self.running and not self._batch.joinable:
            return
        joining: list[Request] = []
        tokens = 0
        while self.waiting and len(self.running) + len(joining) < self.rows:
            tokens += len(self.waiting[0].prompt)
            if joining and tokens > _JOINING_TOKENS:
                break
            joining.append(self.waiting.popleft())
        if joining:
            self._batch.join(joining)
            self.running += joining


def check_length(request: Request, tokens: int) -> None:
    """RequestError for a request of more than `tokens` tokens, prompt and continuation together."""
    if request.tokens > tokens:
        raise RequestError(
            f"The request has {request.tokens} tokens, {len(request.prompt)} of them its prompt; a request may have"
            f" {tokens} here.",
            hint="Shorten the prompt, or ask for fewer tokens.",
        )
