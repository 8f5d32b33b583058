"""Indices of 1 to 8 bits in a stream of bytes, without gaps, least significant bit first.

Index i occupies the bits i·bits … (i+1)·bits − 1 of the stream; bit j of the stream is bit j mod 8 of byte ⌊j/8⌋. The
last byte is filled up with zeros. A matrix can be one stream, or a stream a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 indices below 2^bits, of any shape → a uint8 stream (⌈n·bits/8⌉,)."""
    codes_per_word, bytes_per_word, word = _word(bits)
    flat = codes.reshape(-1)
    table = pad(flat, (0, -flat.numel() % codes_per_word)).view(-1, codes_per_word)
    words = torch.zeros(table.shape[0], dtype=word, device=codes.device)
    for place in range(codes_per_word):
        words |= table[:, place].to(word) << (place * bits)
    stream = torch.empty(table.shape[0], bytes_per_word, dtype=torch.uint8, device=codes.device)
    for place in range(bytes_per_word):
        stream[:, place] = (words >> (8 * place)) & 255
    return stream.view(-1)[: -(-flat.numel() * bits // 8)].clone()


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` indices of a stream, as uint8 (count,)."""
    codes_per_word, bytes_per_word, word = _word(bits)
    table = pad(stream, (0, -stream.numel() % bytes_per_word)).view(-1, bytes_per_word)
    words = table[:, 0].to(word)
    for place in range(1, bytes_per_word):
        words |= table[:, place].to(word) << (8 * place)
    codes = torch.empty(table.shape[0], codes_per_word, dtype=torch.uint8, device=stream.device)
    for place in range(codes_per_word):
        codes[:, place] = (words >> (place * bits)) & (2**bits - 1)
    return codes.view(-1)[:count]


def unpack_at(stream: Tensor, bits: int, positions: Tensor) -> Tensor:
    """The indices at `positions` (int64, any shape) of a stream, as int32; an index touches at most two bytes."""
    first_bit = positions * bits
    byte = first_bit >> 3
    low = stream[byte].int()
    high = stream[(byte + 1).clamp_(max=stream.numel() - 1)].int()
    return ((low | high << 8) >> (first_bit & 7).int()) & (2**bits - 1)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """uint8 indices (rows, n) → a stream a row, (rows, ⌈n·bits/8⌉)."""
    rows, count = codes.shape
    codes_per_word, bytes_per_word, _ = _word(bits)
    words = -(-count // codes_per_word)
    filled = pad(codes, (0, words * codes_per_word - count))
    return pack(filled, bits).view(rows, words * bytes_per_word)[:, : -(-count * bits // 8)].contiguous()


def unpack_rows(streams: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` indices of each stream (rows, bytes), as uint8 (rows, count)."""
    codes_per_word, bytes_per_word, _ = _word(bits)
    words = -(-count // codes_per_word)
    filled = pad(streams, (0, words * bytes_per_word - streams.shape[1]))
    total = streams.shape[0] * words * codes_per_word
    return unpack(filled.reshape(-1), bits, total).view(streams.shape[0], words * codes_per_word)[:, :count]


def _word(bits: int) -> tuple[int, int, torch.dtype]:
    """The shortest run of whole bytes that holds whole indices: (indices, bytes, an integer type that holds it)."""
    size = math.lcm(bits, 8)
    return size // bits, size // 8, torch.uint8 if size == 8 else torch.int64
