"""One token of every row in plain PyTorch and few calls: how a program decodes without graphs.

A small model's step on a CPU is mostly the cost of calling operators. This one calls half as many as
`Program.forward`: products are written into one buffer, and views of it are made once. The queries that share a key
head attend together, as if they were positions, so grouped queries cost nothing more. Shapes: b rows, h hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.decode.cache import StaticCache
from hayless.decode.program import Program


class Step:
    """Takes the rows of `cache` one token further at a time."""

    def __init__(self, program: Program, cache: StaticCache) -> None:
        self._program = program
        self._cache = cache
        self._seen: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, tokens_b: Tensor) -> Tensor:
        """Hidden states (b, h) of tokens (b,) after the last block, before its norm; they join the cache."""
        program, cache = self._program, self._cache
        cache.reserve(1)
        if cache.k is not self._seen:
            self._lay_out()
        lengths = cache.lengths
        # Where a row's new entry goes: of each row, or one number where all are as long.
        rows: slice | Tensor = slice(None)
        at: int | Tensor = lengths[0]
        cos, sin = program.rope(max(lengths) + 1)
        if min(lengths) == max(lengths):
            cos, sin = cos[at], sin[at]
        else:
            rows = torch.arange(len(lengths), device=program.device)
            at = torch.tensor(lengths, device=program.device)
            cos, sin = cos[at, None], sin[at, None]
        x_bh = F.embedding(tokens_b, program.embedding)
        for layer, k_cache, v_cache in self._layers:
            y_bh = program.norm(x_bh, layer.input_gain)
            layer.q.into(self._q, y_bh)
            layer.k.into(self._k, y_bh)
            layer.v.into(self._v, y_bh)
            if layer.q_gain is not None:
                self._q_heads.copy_(program.norm(self._q_heads, layer.q_gain))
                self._k_heads.copy_(program.norm(self._k_heads, layer.k_gain))
            swapped = torch.cat(self._swapped, -1)
            self._qk_heads.mul_(cos).addcmul_(swapped, sin)
            k_cache[rows, :, at] = self._k_heads
            v_cache[rows, :, at] = self._v_heads
            layer.o.onto(x_bh, self._attend(k_cache, v_cache, at))
            y_bh = program.norm(x_bh, layer.post_gain)
            layer.gate.into(self._gate, y_bh)
            layer.up.into(self._up, y_bh)
            layer.down.onto(x_bh, F.silu(self._gate).mul_(self._up))
        cache.lengths = [n + 1 for n in lengths]
        return x_bh

    def _attend(self, k_cache: Tensor, v_cache: Tensor, at: int | Tensor) -> Tensor:
        """Attention (b, heads·head_dim) of every row to its cache, the new entry included."""
        if isinstance(at, int):
            mixed = F.scaled_dot_product_attention(self._queries, k_cache[:, :, : at + 1], v_cache[:, :, : at + 1])
            return mixed.reshape(len(self._queries), -1)
        each = [
            F.scaled_dot_product_attention(q, k[:, : n + 1], v[:, : n + 1])
            for q, k, v, n in zip(self._queries, k_cache, v_cache, self._cache.lengths, strict=True)
        ]
        return torch.stack(each).view(len(each), -1)

    def _lay_out(self) -> None:
        """Buffers for the rows that the cache has now, and views of them and of the cache."""
        program, cache, dims = self._program, self._cache, self._program.dims
        rows = len(cache.lengths)
        heads = [dims.num_heads, dims.num_kv_heads]

        def empty(width: int) -> Tensor:
            return torch.empty(rows, width, dtype=program.dtype, device=program.device)

        qkv = empty(dims.q_width + 2 * dims.kv_width)
        self._q, self._k, self._v = qkv.split([dims.q_width, dims.kv_width, dims.kv_width], 1)
        by_head = qkv.view(rows, -1, dims.head_dim)
        self._q_heads, self._k_heads, self._v_heads = by_head.split([*heads, dims.num_kv_heads], 1)
        self._qk_heads = by_head[:, : sum(heads)]
        self._swapped = self._qk_heads.chunk(2, -1)[::-1]
        self._queries = self._q_heads.unflatten(1, (dims.num_kv_heads, -1))
        self._gate, self._up = empty(dims.intermediate_size), empty(dims.intermediate_size)
        self._layers = list(zip(program.layers, cache.k, cache.v, strict=True))
        self._seen = cache.k
