"""Contenders of one decode step, with everything that it needs on the device: captured, and in plain PyTorch.

What they must agree on are logits: each may be as far from float32 as plain PyTorch is in the model's 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from parts.models import in_float32
from torch import Tensor

from hayless.decode.cache import StaticCache
from hayless.decode.program import Program, plan
from hayless.study.bench.gate import ERROR, Answer
from hayless.study.bench.spec import Prepared

_ROOM = 64


@dataclass(frozen=True)
class Step:
    """A greedy step of `rows` rows, each with `context` random tokens in its cache, the same each time."""

    model: Callable[[], transformers.PreTrainedModel]
    rows: int
    context: int

    @torch.inference_mode()
    def captured(self, *, invariant: bool = False) -> Prepared:
        """A session's CUDA graph; with `invariant`, one whose rows do not depend on each other."""
        from hayless.decode.graphs import Session  # needs Triton

        session = Session(_program(self.model()), self.rows, self.context + _ROOM, invariant=invariant)
        session.capture("greedy")
        _fill(session.cache)
        # No row is active, so that lengths stay as they are and each repeat does the same.
        session.lengths_b.fill_(self.context)

        @torch.inference_mode()
        def answer() -> Answer:
            session.tokens_b.copy_(self._tokens())
            session.replay("greedy")
            return {ERROR: session.logits_bv - self._exact()}

        return Prepared(lambda: session.replay("greedy"), answer)

    @torch.inference_mode()
    def plain(self) -> Prepared:
        """The same program, operator by operator."""
        program = _program(self.model())
        cache = self._cache(program)
        _fill(cache)

        def logits() -> Tensor:
            return self._logits(program, cache)

        return Prepared(lambda: logits().argmax(-1), lambda: {ERROR: logits() - self._exact()})

    @torch.inference_mode()
    def _exact(self) -> Tensor:
        """Logits in float32, from the same keys and values."""
        program = _program(self.model())
        start = self._cache(program)
        _fill(start)
        wide = _program(in_float32(self.model()))
        cache = self._cache(wide)
        cache.k.copy_(start.k)
        cache.v.copy_(start.v)
        return self._logits(wide, cache)

    def _cache(self, program: Program) -> StaticCache:
        return StaticCache(program.dims, self.rows, self.context + _ROOM, program.dtype, program.device)

    def _logits(self, program: Program, cache: StaticCache) -> Tensor:
        cache.lengths = [self.context] * self.rows
        return program.logits(program.forward(self._tokens().to(program.device)[:, None], cache)[:, 0])

    def _tokens(self) -> Tensor:
        return torch.arange(self.rows) + 3


def _program(model: transformers.PreTrainedModel) -> Program:
    program = plan(model)
    assert isinstance(program, Program), program.reason
    return program


@torch.inference_mode()
def _fill(cache: StaticCache) -> None:
    torch.manual_seed(0)
    cache.k.normal_()
    cache.v.normal_()
