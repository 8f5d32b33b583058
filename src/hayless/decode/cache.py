"""A static cache with a length for each row.

Row r holds `lengths[r]` tokens in its first slots; what lies behind them is undefined and never read. A row is cut
back by lowering its length (`truncate`), which is all that a rejected draft needs. Shapes: b rows, s new tokens,
t tokens in the cache, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hayless.core.dims import ModelDims
from hayless.core.errors import bad_value

if TYPE_CHECKING:
    from hayless.kernels.attention import Scratch
    from hayless.kernels.linear import Norm

_SMALLEST = 64

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Puts a layer's new keys and values (b, kv_heads, s, d) into a cache, and gives what the new queries (b, heads, s, d)
get from all that their row holds then: (b, heads, s, d)."""


class Cache(Protocol):
    """What a program's forward pass asks of a cache."""

    lengths: list[int]
    """Tokens that each row holds."""

    def entering(self, new: int) -> Attend:
        """Make ready for `new` more tokens in every row, which join layer by layer."""

    def advance(self, new: int) -> None:
        """The tokens have joined in every layer."""


class KernelCache(Protocol):
    """A cache in another form than whole keys and values, read by a kernel of its own as one token a row joins."""

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""

    def prefill(self, row: int, prompt: Sequence[int]) -> Tensor:
        """Read a prompt into an empty row; its last hidden state (1, h)."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths_b: Tensor,
        out: Tensor,
        scratch: Scratch,
        *,
        q_norm: Norm | None,
        k_norm: Norm | None,
        overlap: bool,
    ) -> None:
        """Launch what `hayless.kernels.attention.decode_attention` does, for one token of each row."""


class StaticCache:
    """Keys and values (layers, rows, kv_heads, capacity, head_dim), and lengths on the host."""

    def __init__(self, dims: ModelDims, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (dims.num_layers, rows, dims.num_kv_heads, capacity, dims.head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.lengths = [0] * rows

    def rows(self, first: int, end: int) -> StaticCache:
        """Rows `first` to `end` as an empty cache of their own, over the same memory; it must not grow."""
        view = copy(self)
        view.k, view.v = self.k[:, first:end], self.v[:, first:end]
        view.lengths = [0] * (end - first)
        return view

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.k.shape[3]

    @property
    def bytes(self) -> int:
        """Size of keys and values."""
        return 2 * self.k.numel() * self.k.element_size()

    def reserve(self, tokens: int) -> None:
        """Hold `tokens` more in every row, growing to a power of 2 where that is needed."""
        needed = max(self.lengths, default=0) + tokens
        if needed <= self.capacity:
            return
        capacity = max(_SMALLEST, 1 << (needed - 1).bit_length())
        self.k, self.v = (_grown(tensor, capacity) for tensor in (self.k, self.v))

    def entering(self, new: int) -> Attend:
        """Make ready for `new` more tokens in every row, which join layer by layer.

        Rows attend together where all are as long.
        """
        self.reserve(new)
        starts, even = self.lengths, min(self.lengths) == max(self.lengths)
        groups = [(slice(None), starts[0])] if even else [(slice(r, r + 1), n) for r, n in enumerate(starts)]
        masks = {n: seen_mask(new, n, self.k.device) for n in set(starts)}

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cached_k, cached_v = self.k[layer], self.v[layer]
            found = []
            for rows, n in groups:
                cached_k[rows, :, n : n + new] = k[rows]
                cached_v[rows, :, n : n + new] = v[rows]
                held_k, held_v = cached_k[rows, :, : n + new], cached_v[rows, :, : n + new]
                found.append(attend(q[rows], held_k, held_v, masks[n]))
            return found[0] if even else torch.cat(found)

        return attend_layer

    def advance(self, new: int) -> None:
        """The tokens have joined in every layer."""
        self.lengths = [n + new for n in self.lengths]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.k.device)
        self.k, self.v = self.k[:, index], self.v[:, index]
        self.lengths = [self.lengths[row] for row in rows]

    def append(self, other: StaticCache) -> None:
        """Take another's rows behind these; where there are none, its memory."""
        if not self.lengths:
            self.k, self.v, self.lengths = other.k, other.v, other.lengths
            return
        capacity = max(self.capacity, other.capacity)
        mine, theirs = ([_grown(tensor, capacity) for tensor in (one.k, one.v)] for one in (self, other))
        self.k, self.v = (torch.cat(pair, 1) for pair in zip(mine, theirs, strict=True))
        self.lengths = [*self.lengths, *other.lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length; the entries behind it are written again before they are read."""
        for before, after in zip(self.lengths, lengths, strict=True):
            if not 0 <= after <= before:
                raise bad_value("length", after, allowed=f"0 to {before}, what the row holds")
        self.lengths = list(lengths)


def keeps_all(cache: DynamicCache) -> bool:
    """Whether every layer of transformers' cache keeps the keys of all tokens, and nothing else.

    Rows can then be added, padded and cut back.
    """
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def seen_mask(new: int, before: int, device: torch.device) -> Tensor | None:
    """Which keys (s, before + s) each of `new` tokens sees, where that is neither all nor plain causal."""
    if new == 1 or before == 0:
        return None
    return torch.ones(new, before + new, dtype=torch.bool, device=device).tril(before)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of the last tokens' queries (b, heads, s, d) to keys and values (b, kv_heads, t, d), by `seen_mask`."""
    grouped = q.shape[1] != k.shape[1]
    causal = q.shape[2] > 1 and mask is None
    if mask is not None and grouped and q.is_cuda:
        # The fused kernels that take a mask do not take grouped queries.
        times = q.shape[1] // k.shape[1]
        k, v, grouped = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _grown(tensor: Tensor, capacity: int) -> Tensor:
    if tensor.shape[3] == capacity:
        return tensor
    shape = list(tensor.shape)
    shape[3] = capacity
    grown = tensor.new_empty(shape)
    grown[:, :, :, : tensor.shape[3]] = tensor
    return grown
