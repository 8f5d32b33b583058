"""One token of every row in plain PyTorch and few calls: how a program decodes without graphs.

A small model's step on a CPU is mostly the cost of calling operators. This one calls half as many as
`Program.forward`: products are written into one buffer, and views of it are made once. The queries that share a key
head attend together, as if they were positions, so grouped queries cost nothing more. A watch may end a step before
its last layer. Shapes: b rows, h hidden, n layers that were skipped, g key heads, d head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.decode.cache import StaticCache
from hayless.decode.products import into_each
from hayless.decode.program import Program


class Watch(Protocol):
    """Looks at the states behind each layer of a step."""

    copies: bool
    """Whether layers that are skipped get keys and values, from the state that skips them; without, later tokens must
    not go through these layers."""

    def __call__(self, layer: int, x_bh: Tensor) -> bool:
        """Whether the step ends behind its first `layer` layers, with x_bh, of which it may write over rows."""


class Step:
    """Takes the rows of `cache` one token further at a time."""

    def __init__(self, program: Program, cache: StaticCache) -> None:
        self._program = program
        self._cache = cache
        self._seen: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, tokens_b: Tensor, watch: Watch | None = None) -> Tensor:
        """Hidden states (b, h) of tokens (b,) after the last block, before its norm; they join the cache.

        Where `watch` ends the step, they are those behind the layer that it ends at.
        """
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
        for number, (layer, k_cache, v_cache) in enumerate(self._layers, 1):
            y_bh = program.norm(x_bh, layer.input_gain)
            into_each((layer.q, layer.k, layer.v), (self._q, self._k, self._v), y_bh)
            if layer.q_gain is not None:
                self._q_heads.copy_(program.norm(self._q_heads, layer.q_gain))
                self._k_heads.copy_(program.norm(self._k_heads, layer.k_gain))
            swapped = torch.cat(self._swapped, -1)
            self._qk_heads.mul_(cos).addcmul_(swapped, sin)
            if isinstance(at, int):
                k_cache.select(2, at).copy_(self._k_heads)
                v_cache.select(2, at).copy_(self._v_heads)
            else:
                k_cache[rows, :, at], v_cache[rows, :, at] = self._k_heads, self._v_heads
            layer.o.onto(x_bh, self._attend(k_cache, v_cache, at))
            y_bh = program.norm(x_bh, layer.post_gain)
            into_each((layer.gate, layer.up), (self._gate, self._up), y_bh)
            layer.down.onto(x_bh, F.silu(self._gate).mul_(self._up))
            if watch is not None and watch(number, x_bh):
                if watch.copies and number < len(self._layers):
                    self._copy(x_bh, number, rows, at, cos, sin)
                break
        cache.lengths = [n + 1 for n in lengths]
        return x_bh

    def _copy(self, x_bh: Tensor, done: int, rows: slice | Tensor, at: int | Tensor, cos: Tensor, sin: Tensor) -> None:
        """Keys and values of the layers behind the first `done`, as if x_bh entered each of them."""
        program, cache = self._program, self._cache
        shape_nbgd = (len(self._layers) - done, len(x_bh), program.dims.num_kv_heads, program.dims.head_dim)
        k_nbgd, v_nbgd = (torch.empty(shape_nbgd, dtype=program.dtype, device=program.device) for _ in range(2))
        # What enters them is the same, and so are its norm but for the gain, and the rotation of their keys.
        y_bh = program.norm(x_bh, torch.ones_like(program.final_gain))
        for (layer, _, _), k_bgd, v_bgd in zip(self._layers[done:], k_nbgd, v_nbgd, strict=True):
            gained_bh = y_bh * layer.input_gain
            layer.k.into(k_bgd.flatten(1), gained_bh)
            layer.v.into(v_bgd.flatten(1), gained_bh)
            if layer.k_gain is not None:
                k_bgd.copy_(program.norm(k_bgd, layer.k_gain))
        swapped = torch.cat(k_nbgd.chunk(2, -1)[::-1], -1)
        k_nbgd.mul_(cos).addcmul_(swapped, sin)
        if isinstance(at, int):
            cache.k[done:, :, :, at], cache.v[done:, :, :, at] = k_nbgd, v_nbgd
        else:
            cache.k[done:, rows, :, at], cache.v[done:, rows, :, at] = k_nbgd.transpose(0, 1), v_nbgd.transpose(0, 1)

    def _attend(self, k_cache: Tensor, v_cache: Tensor, at: int | Tensor) -> Tensor:
        """Attention (b, heads·head_dim) of every row to its cache, the new entry included."""
        if isinstance(at, int):
            k, v = k_cache.narrow(2, 0, at + 1), v_cache.narrow(2, 0, at + 1)
            mixed = F.scaled_dot_product_attention(self._queries, k, v)
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
