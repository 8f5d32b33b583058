"""Contenders of one decode step over a long cache: keys and values as they are, or in few bits.

What they must agree on are logits: each may be as far from float32, which reads the same numbers, as the first is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from parts.models import in_float32
from torch import Tensor

from hayless.core.registry import configure
from hayless.decode.cache import StaticCache
from hayless.decode.program import Program, plan
from hayless.methods.decoding.kv.part import QuantizedKV
from hayless.study.bench.gate import ERROR, Answer
from hayless.study.bench.spec import Figure, Prepared

if TYPE_CHECKING:
    from hayless.decode.graphs import Session

_ROOM = 64
_JUDGED = 1
"""Rows that are computed again in float32."""
Numbers = Callable[[int], tuple[Tensor, Tensor]]
"""Keys and values (rows, kv_heads, context, head_dim) of a layer."""


@dataclass(frozen=True)
class HeldStep:
    """A greedy step in captured graphs of `rows` rows, each with `context` random tokens held, the same each time."""

    model: Callable[[], transformers.PreTrainedModel]
    rows: int
    context: int

    @torch.inference_mode()
    def whole(self) -> Prepared:
        """Over a cache in the model's dtype."""
        session = self._session(None)
        cache = session.cache
        assert isinstance(cache, StaticCache)
        for layer in range(len(cache.k)):
            k, v = self._drawn(layer)
            cache.k[layer, :, :, : self.context], cache.v[layer, :, :, : self.context] = k, v
        return self._prepared(session, self._drawn, cache.bytes)

    @torch.inference_mode()
    def quantized(self, bits: int) -> Prepared:
        """Over one of `bits`."""
        from hayless.kernels.quantized_cache import fill, found
        from hayless.methods.decoding.kv.coded import CodedCache

        config = configure("kv", bits=bits)
        session = self._session(QuantizedKV(config, self.model()))  # type: ignore[arg-type]
        cache = session.cache
        assert isinstance(cache, CodedCache)
        for layer in range(len(cache.held.k_codes)):
            k, v = self._drawn(layer)
            for row in range(self.rows):
                fill(cache.held[layer, row], k[row], v[row])

        def numbers(layer: int) -> tuple[Tensor, Tensor]:
            each = [found(cache.held[layer, row], self.context) for row in range(_JUDGED)]
            k, v = zip(*each, strict=True)
            return torch.stack(k), torch.stack(v)

        return self._prepared(session, numbers, cache.bytes)

    def _prepared(self, session: Session, numbers: Numbers, size: int) -> Prepared:
        # No row is active, so that lengths stay as they are and each repeat does the same.
        session.lengths_b.fill_(self.context)
        exact = self._exact(numbers)

        @torch.inference_mode()
        def answer() -> Answer:
            session.tokens_b.copy_(self._tokens())
            session.replay("greedy")
            return {ERROR: session.logits_bv[:_JUDGED] - exact}

        return Prepared(
            lambda: session.replay("greedy"), answer, figures=lambda: [Figure("bytes of the cache", "B", float(size))]
        )

    def _session(self, held: QuantizedKV | None) -> Session:
        from hayless.decode.graphs import Session  # needs Triton

        session = Session(_program(self.model()), self.rows, self.context + _ROOM, held=held)
        session.capture("greedy")
        return session

    @torch.inference_mode()
    def _exact(self, numbers: Numbers) -> Tensor:
        """Logits of the first rows in float32, from the same keys and values."""
        wide = _program(in_float32(self.model()))
        cache = StaticCache(wide.dims, _JUDGED, self.context + _ROOM, wide.dtype, wide.device)
        for layer in range(len(cache.k)):
            for whole, part in zip((cache.k, cache.v), numbers(layer), strict=True):
                whole[layer, :, :, : self.context] = part[:_JUDGED]
        cache.lengths = [self.context] * _JUDGED
        tokens = self._tokens()[:_JUDGED].to(wide.device)
        return wide.logits(wide.forward(tokens[:, None], cache)[:, 0])

    def _drawn(self, layer: int) -> tuple[Tensor, Tensor]:
        program = _program(self.model())
        dims = program.dims
        generator = torch.Generator(program.device).manual_seed(layer)
        shape = (2, self.rows, dims.num_kv_heads, self.context, dims.head_dim)
        k, v = torch.randn(shape, generator=generator, device=program.device, dtype=program.dtype)
        return k, v

    def _tokens(self) -> Tensor:
        return torch.arange(self.rows) + 3


def _program(model: transformers.PreTrainedModel) -> Program:
    program = plan(model)
    assert isinstance(program, Program), program.reason
    return program
