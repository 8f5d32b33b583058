"""Groups of numbers as codes of 8, 4 or 2 bits, and back.

Shapes: h heads, n tokens, d channels of a head, p bytes of a token's codes (d · bits / 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        divisor = step.float()
        grouped = (grouped - least.float()).div_(divisor.masked_fill_(divisor == 0, 1))
        codes = grouped.round_().clamp_(0, 2**bits - 1).to(torch.uint8).flatten(along, along + 1)
        return Codes(_pack(codes, bits), step, least, bits, along)

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
        codes = _unpack(self.packed, self.bits).unflatten(self.along, (groups, -1)).to(out_hnd.dtype)
        torch.addcmul(self.least, codes, self.step, out=out_hnd.unflatten(self.along, (groups, -1)))


def _pack(codes_hnd: Tensor, bits: int) -> Tensor:
    parts = codes_hnd.unflatten(-1, (-1, 8 // bits)).unbind(-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], 1):
        packed |= part << place * bits
    return packed


def _unpack(packed_hnp: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed_hnp
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed_hnp.device)
    return (packed_hnp[..., None] >> shifts).bitwise_and_(2**bits - 1).flatten(-2)
