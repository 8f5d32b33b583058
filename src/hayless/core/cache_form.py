"""In what form a cache holds keys and values, and what they take then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheForm:
    """A quantized cache of keys and values: `bits` a number, and a scale and a least value, in the model's dtype, for
    each group.

    A channel of keys has groups of `group_size` tokens, and `residual` tokens are quantized at once; a token's values
    have groups of as many channels of a head (all, where it has fewer), and the last `residual` stay as they are.
    """

    bits: int
    group_size: int
    residual: int

    def channels(self, head_dim: int) -> int:
        """Channels of a head in a group of values."""
        return min(self.group_size, head_dim)

    def quantized(self, tokens: int) -> tuple[int, int]:
        """How many of a row's first tokens have quantized keys, and how many quantized values."""
        return tokens // self.residual * self.residual, max(0, tokens - self.residual)

    def bytes(self, head_dim: int, item: int, tokens: int) -> int:
        """Bytes of one head's keys and values of a row of `tokens`, in a dtype of `item` bytes."""
        keys, values = self.quantized(tokens)
        codes = (keys + values) * head_dim * self.bits // 8
        groups = keys // self.group_size * head_dim + values * (head_dim // self.channels(head_dim))
        return codes + item * (2 * groups + (2 * tokens - keys - values) * head_dim)

    def room_bytes(self, head_dim: int, item: int, capacity: int) -> int:
        """Bytes of one head's keys and values with room for `capacity` tokens, as kernels read them."""
        slots = -(-capacity // self.residual) * self.residual
        groups = slots // self.group_size * head_dim + slots * (head_dim // self.channels(head_dim))
        latest = (2 * self.residual + 1) * head_dim
        return 2 * slots * head_dim * self.bits // 8 + item * (2 * groups + latest)

    def why_no_kernel(self, head_dim: int) -> str | None:
        """Why no kernel reads such codes; None where one does."""
        if head_dim not in (32, 64, 128, 256):
            return f"no kernel reads the codes of heads of {head_dim} channels, only of 32, 64, 128 or 256"
        if self.group_size > 128 or self.group_size & (self.group_size - 1):
            return f"no kernel reads codes by groups of {self.group_size}, only by powers of 2 up to 128"
        return None

    def unpacked_bytes(self, width: int, item: int, tokens: int) -> int:
        """What turning codes into numbers takes beside these: the codes of one row's keys, `width` a token, as numbers
        in a dtype of `item` bytes, and where they are smaller than a byte, in one each before."""
        return max(self.quantized(tokens)) * width * (item + (self.bits < 8))
