"""A quantized cache: what each row holds of each layer, and what new tokens find there.

New tokens find what was held before they came, and each other as they are; then they are held too. So prompts are read
in full precision. Shapes: b rows, h key heads, n tokens that a row holds, s new tokens, t tokens of the longest row
with the new ones, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hayless.decode.cache import Attend, attend, seen_mask
from hayless.kernels.quantized_cache import CHANNELS, TOKENS, Codes
from hayless.methods.decoding.kv.config import KVConfig
from hayless.methods.decoding.kv.predict import cache_form


class HeldLayer:
    """One layer of one row: quantized keys and values, and behind them the latest as they are."""

    __slots__ = ("_form", "_k", "_k_latest", "_v", "_v_latest")

    def __init__(self, config: KVConfig) -> None:
        self._form = cache_form(config)
        self._k: Codes | None = None
        self._v: Codes | None = None
        self._k_latest: Tensor | None = None
        self._v_latest: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size of all that is held."""
        quantized = [tensor for codes in (self._k, self._v) if codes is not None for tensor in codes.tensors]
        latest = [tensor for tensor in (self._k_latest, self._v_latest) if tensor is not None]
        return sum(tensor.untyped_storage().nbytes() for tensor in (*quantized, *latest))

    def write(self, k_hnd: Tensor, v_hnd: Tensor) -> None:
        """Put all keys and values into tensors of their shape."""
        for codes, latest, out in ((self._k, self._k_latest, k_hnd), (self._v, self._v_latest, v_hnd)):
            assert latest is not None
            quantized = 0 if codes is None else codes.tokens
            if codes is not None:
                codes.write(out[:, :quantized])
            out[:, quantized:] = latest

    def hold(self, k_hsd: Tensor, v_hsd: Tensor) -> None:
        """Take new tokens in. Keys are quantized `residual` tokens at once, values when as many others are behind."""
        form = self._form
        self._k_latest = _joined(self._k_latest, k_hsd)
        self._v_latest = _joined(self._v_latest, v_hsd)
        keys = self._k_latest.shape[1] // form.residual * form.residual
        values = max(0, self._v_latest.shape[1] - form.residual)
        if keys:
            self._k = _after(self._k, Codes.of(self._k_latest[:, :keys], form.bits, form.group_size, TOKENS))
            self._k_latest = self._k_latest[:, keys:].clone()
        if values:
            channels = form.channels(v_hsd.shape[-1])
            self._v = _after(self._v, Codes.of(self._v_latest[:, :values], form.bits, channels, CHANNELS))
            self._v_latest = self._v_latest[:, values:].clone()


class QuantizedCache:
    """Rows of any length, each of its own tensors, which have the size of what they hold."""

    def __init__(self, config: KVConfig, layers: int, rows: int = 0) -> None:
        self.lengths = [0] * rows
        self._rows = [[HeldLayer(config) for _ in range(layers)] for _ in range(rows)]

    @property
    def bytes(self) -> int:
        """Size of keys and values."""
        return sum(layer.bytes for row in self._rows for layer in row)

    def extend(self, layer: int, k_bhsd: Tensor, v_bhsd: Tensor) -> tuple[Tensor, Tensor]:
        """What new tokens of every row find in a layer, (b, h, t, d), and hold them.

        Shorter rows have zeros before their tokens.
        """
        before = max(self.lengths)
        found_k, found_v = k_bhsd, v_bhsd
        if before:
            b, h, s, d = k_bhsd.shape
            found_k, found_v = (k_bhsd.new_empty(b, h, before + s, d) for _ in range(2))
            for row, n in enumerate(self.lengths):
                for found in (found_k, found_v):
                    found[row, :, : before - n] = 0
                self._rows[row][layer].write(found_k[row, :, before - n : before], found_v[row, :, before - n : before])
            found_k[:, :, before:], found_v[:, :, before:] = k_bhsd, v_bhsd
        for row, (k_hsd, v_hsd) in enumerate(zip(k_bhsd, v_bhsd, strict=True)):
            self._rows[row][layer].hold(k_hsd, v_hsd)
        return found_k, found_v

    def entering(self, new: int) -> Attend:
        """Make ready for `new` more tokens in every row; each row attends alone."""
        rows = [self.row(row) for row in range(len(self.lengths))]

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            found = []
            for number, row in enumerate(rows):
                one = slice(number, number + 1)
                held_k, held_v = row.extend(layer, k[one], v[one])
                found.append(attend(q[one], held_k, held_v, seen_mask(new, row.lengths[0], q.device)))
            return torch.cat(found)

        return attend_layer

    def advance(self, new: int) -> None:
        """The tokens have joined in every layer."""
        self.lengths = [n + new for n in self.lengths]

    def row(self, number: int) -> QuantizedCache:
        """A row as a cache of its own, over the same layers."""
        found = QuantizedCache.__new__(QuantizedCache)
        found.lengths, found._rows = [self.lengths[number]], [self._rows[number]]
        return found

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        self._rows = [self._rows[row] for row in rows]

    def append(self, other: QuantizedCache) -> None:
        """Take another's rows behind these."""
        self.lengths = [*self.lengths, *other.lengths]
        self._rows = [*self._rows, *other._rows]


def _joined(earlier: Tensor | None, later: Tensor) -> Tensor:
    """Both, in memory of their own."""
    return later.clone(memory_format=torch.contiguous_format) if earlier is None else torch.cat([earlier, later], 1)


def _after(earlier: Codes | None, later: Codes) -> Codes:
    return later if earlier is None else earlier.then(later)
