"""The size of safetensors files, to the byte, before they exist.

A safetensors file is 8 bytes of header length, a JSON header padded with spaces to a multiple of 8, and the tensors
ordered by falling element size, then by name (format 0.x of the safetensors library).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from hayless.core.dtypes import BITS, SAFETENSORS, item_bytes

SHARD_BYTES = 4 * 10**9
"""A file is split into shards of at most this many bytes of tensors."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * item_bytes(self.dtype)


def shards(entries: Iterable[TensorEntry], limit: int = SHARD_BYTES) -> list[list[TensorEntry]]:
    """Entries, by name, split so that no shard's data exceeds `limit` (a tensor larger than it stands alone)."""
    found: list[list[TensorEntry]] = [[]]
    size = 0
    for entry in sorted(entries, key=lambda entry: entry.name):
        if found[-1] and size + entry.bytes > limit:
            found.append([])
            size = 0
        found[-1].append(entry)
        size += entry.bytes
    return found


def file_bytes(entries: Iterable[TensorEntry], limit: int = SHARD_BYTES) -> int:
    """Bytes of the safetensors file, or of all its shards together, that holds `entries`."""
    return sum(_one_file(shard) for shard in shards(entries, limit))


def _one_file(entries: list[TensorEntry]) -> int:
    order = list(BITS)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in sorted(entries, key=lambda e: (-item_bytes(e.dtype), order.index(e.dtype), e.name)):
        end = offset + entry.bytes
        header[entry.name] = {
            "dtype": SAFETENSORS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (length + 7) // 8 * 8 + offset
