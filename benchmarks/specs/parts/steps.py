"""Contenders of one decode step, with everything that it needs on the device: captured, and in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from hayless.decode.cache import StaticCache
from hayless.decode.program import Program, plan
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Prepared

_ROOM = 256


@dataclass(frozen=True)
class Step:
    """A greedy step of `rows` rows, each with `context` random tokens in its cache, the same each time."""

    model: Callable[[], transformers.PreTrainedModel]
    rows: int
    context: int

    @torch.inference_mode()
    def captured(self) -> Prepared:
        """A session's CUDA graph."""
        from hayless.decode.graphs import Session  # needs Triton

        session = Session(self._program(), self.rows, self.context + _ROOM)
        session.capture("greedy")
        self._fill(session.cache)
        # No row is active, so that lengths stay as they are and each repeat does the same.
        session.lengths_b.fill_(self.context)

        @torch.inference_mode()
        def answer() -> Answer:
            session.tokens_b.copy_(self._tokens())
            session.replay("greedy")
            return {"logits": session.logits_bv.clone()}

        return Prepared(lambda: session.replay("greedy"), answer)

    @torch.inference_mode()
    def plain(self) -> Prepared:
        """The same program, operator by operator."""
        program = self._program()
        cache = StaticCache(program.dims, self.rows, self.context + _ROOM, program.dtype, program.device)
        self._fill(cache)
        tokens_b1 = self._tokens().to(program.device)[:, None]

        def logits() -> torch.Tensor:
            cache.lengths = [self.context] * self.rows
            return program.logits(program.forward(tokens_b1, cache)[:, 0])

        return Prepared(lambda: logits().argmax(-1), lambda: {"logits": logits()})

    def _program(self) -> Program:
        program = plan(self.model())
        assert isinstance(program, Program), program.reason
        return program

    def _tokens(self) -> torch.Tensor:
        return torch.arange(self.rows) + 3

    @torch.inference_mode()
    def _fill(self, cache: StaticCache) -> None:
        torch.manual_seed(0)
        cache.k.normal_()
        cache.v.normal_()
