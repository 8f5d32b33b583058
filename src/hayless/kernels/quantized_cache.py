"""A quantized cache's numbers: groups as codes of 8, 4 or 2 bits and back, and the layout that kernels read.

Of n tokens the first ⌊n/R⌋·R keys and the first n − R values are codes, where R is the residual; the latest are as they
are. Shapes: h heads, n tokens, d channels of a head, p bytes of a token's codes (d · bits / 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hayless.kernels.packed.bits import pack, unpack

TOKENS, CHANNELS = 1, 2
"""The dimension along which a group lies."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Quantized numbers (h, n, d): codes (h, n, p), and of each group, which lies along `along`, its step and its least
    number."""

    packed: Tensor
    step: Tensor
    least: Tensor
    bits: int
    along: int

    @staticmethod
    def of(x_hnd: Tensor, bits: int, group: int, along: int) -> Codes:
        """Quantize numbers; the size of `along` is a multiple of `group`, the lowest bits hold the first channel."""
        grouped = x_hnd.float().unflatten(along, (-1, group))
        least, most = grouped.aminmax(dim=along + 1, keepdim=True)
        step = ((most - least) / (2**bits - 1)).to(x_hnd.dtype)
        least = least.to(x_hnd.dtype)
        grouped = (grouped - least.float()).div_(step.float().masked_fill(step == 0, 1))
        codes = grouped.round_().clamp_(0, 2**bits - 1).to(torch.uint8).flatten(along, along + 1)
        packed = pack(codes, bits).view(*codes.shape[:2], codes.shape[2] * bits // 8)
        return Codes(packed, step, least, bits, along)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.packed.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that is held."""
        return self.packed, self.step, self.least

    def then(self, later: Codes) -> Codes:
        """These tokens and later ones."""
        packed, step, least = (torch.cat(pair, 1) for pair in zip(self.tensors, later.tensors, strict=True))
        return Codes(packed, step, least, self.bits, self.along)

    def write(self, out_hnd: Tensor) -> None:
        """Put the numbers into a tensor of their shape and dtype."""
        if not self.tokens:
            return
        groups = self.step.shape[self.along]
        codes = self.packed if self.bits == 8 else unpack(self.packed.reshape(-1), self.bits, out_hnd.numel())
        codes = codes.view(out_hnd.shape).unflatten(self.along, (groups, -1)).to(out_hnd.dtype)
        torch.addcmul(self.least, codes, self.step, out=out_hnd.unflatten(self.along, (groups, -1)))


@dataclass(frozen=True, slots=True)
class Held:
    """Keys and values of heads (…) with room for N tokens each: codes (…, N, p) in uint8, and the latest in rings.

    Token t lies at place t mod R of the ring of keys, t mod R + 1 of that of values. Steps and least numbers: of keys
    (…, N / group, d), of values (…, N, d / channels), in the numbers' dtype.
    """

    bits: int
    k_codes: Tensor
    k_step: Tensor
    k_least: Tensor
    k_latest: Tensor
    v_codes: Tensor
    v_step: Tensor
    v_least: Tensor
    v_latest: Tensor

    @staticmethod
    def empty(
        shape: tuple[int, ...],
        slots: int,
        dim: int,
        *,
        bits: int,
        group: int,
        channels: int,
        residual: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Held:
        """Room for `slots` tokens, a multiple of `group`, of `shape` heads: (b, h), or (layers, b, h)."""
        codes = [torch.empty(*shape, slots, dim * bits // 8, dtype=torch.uint8, device=device) for _ in range(2)]

        def numbers(tokens: int, width: int) -> Tensor:
            return torch.empty(*shape, tokens, width, dtype=dtype, device=device)

        keys = [numbers(slots // group, dim), numbers(slots // group, dim), numbers(residual, dim)]
        values = [numbers(slots, dim // channels), numbers(slots, dim // channels), numbers(residual + 1, dim)]
        return Held(bits, *[codes[0], *keys, codes[1], *values])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is held."""
        keys = self.k_codes, self.k_step, self.k_least, self.k_latest
        return *keys, self.v_codes, self.v_step, self.v_least, self.v_latest

    @property
    def residual(self) -> int:
        """R."""
        return self.k_latest.shape[-2]

    @property
    def group(self) -> int:
        """Tokens of a group of keys."""
        return self.k_codes.shape[-2] // self.k_step.shape[-2]

    @property
    def channels(self) -> int:
        """Channels of a group of values."""
        return self.v_latest.shape[-1] // self.v_step.shape[-1]

    def __getitem__(self, index: int | tuple[int, ...]) -> Held:
        """What lies at an index of the first dimensions."""
        return Held(self.bits, *(tensor[index] for tensor in self.tensors))


def found(held: Held, n: int) -> tuple[Tensor, Tensor]:
    """The keys and values (h, n, d) of a row of n tokens."""
    residual = held.residual
    k, v = (latest.new_empty(len(latest), n, latest.shape[-1]) for latest in (held.k_latest, held.v_latest))
    keys, values = n // residual * residual, max(0, n - residual)
    groups = keys // held.group
    step, least = held.k_step[:, :groups, None], held.k_least[:, :groups, None]
    Codes(held.k_codes[:, :keys], step, least, held.bits, TOKENS).write(k[:, :keys])
    step, least = held.v_step[:, :values, :, None], held.v_least[:, :values, :, None]
    Codes(held.v_codes[:, :values], step, least, held.bits, CHANNELS).write(v[:, :values])
    k[:, keys:] = held.k_latest[:, : n - keys]
    v[:, values:] = held.v_latest[:, torch.arange(values, n) % (residual + 1)]
    return k, v


def take_in(held: Held, n: int, k_hd: Tensor, v_hd: Tensor) -> None:
    """Put a new token behind n, and quantize what is no longer among the latest."""
    residual = held.residual
    _put_latest(held, n + 1, k_hd[:, None], v_hd[:, None])
    if (n + 1) % residual == 0:
        _put_keys(held, n + 1 - residual, held.k_latest)
    if n >= residual:
        _put_values(held, n - residual, held.v_latest[:, None, (n - residual) % (residual + 1)])


def fill(held: Held, k_hnd: Tensor, v_hnd: Tensor) -> None:
    """Put all tokens of a row into its cache, in plain PyTorch."""
    n, residual = k_hnd.shape[1], held.residual
    keys, values = n // residual * residual, max(0, n - residual)
    _put_keys(held, 0, k_hnd[:, :keys])
    _put_values(held, 0, v_hnd[:, :values])
    _put_latest(held, n, k_hnd[:, keys:], v_hnd[:, values:])


def _put_keys(held: Held, first: int, k_hnd: Tensor) -> None:
    """Quantize whole groups of keys into the slots from `first` on."""
    codes, tokens = Codes.of(k_hnd, held.bits, held.group, TOKENS), k_hnd.shape[1]
    held.k_codes[:, first : first + tokens] = codes.packed
    groups = slice(first // held.group, (first + tokens) // held.group)
    held.k_step[:, groups], held.k_least[:, groups] = codes.step.squeeze(2), codes.least.squeeze(2)


def _put_values(held: Held, first: int, v_hnd: Tensor) -> None:
    """Quantize values into the slots from `first` on."""
    codes, tokens = Codes.of(v_hnd, held.bits, held.channels, CHANNELS), slice(first, first + v_hnd.shape[1])
    held.v_codes[:, tokens] = codes.packed
    held.v_step[:, tokens], held.v_least[:, tokens] = codes.step.squeeze(3), codes.least.squeeze(3)


def _put_latest(held: Held, n: int, k_hnd: Tensor, v_hnd: Tensor) -> None:
    """Put the last keys and values of a row of n tokens into its rings."""
    for latest, x_hnd in ((held.k_latest, k_hnd), (held.v_latest, v_hnd)):
        tokens = torch.arange(n - x_hnd.shape[1], n, device=x_hnd.device)
        latest[:, tokens % latest.shape[1]] = x_hnd
