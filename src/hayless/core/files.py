"""The size of safetensors files, to the byte, before they exist; and what those that exist hold. No torch.

A safetensors file is 8 bytes of header length, a JSON header padded with spaces to a multiple of 8, and the tensors
ordered by falling element size, then by name (format 0.x of the safetensors library).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hayless.core.dtypes import BITS, SAFETENSORS, item_bytes
from hayless.core.errors import FileDamaged

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


class WeightFiles:
    """What the safetensors files of a model folder hold: names, and the bytes of tensors that are small."""

    def __init__(self, folder: Path) -> None:
        """FileDamaged for a file that is not a whole one."""
        self.folder = folder
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            header, start = _header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    first, last = entry["data_offsets"]
                    self._places[name] = (path, start + first, last - first)

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._places)

    def content(self, name: str) -> bytes:
        """The bytes of one tensor."""
        path, offset, size = self._places[name]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and where its data begin."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
            entries = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            if any(8 + length + last > path.stat().st_size for _, last in entries):
                raise ValueError("tensors are cut off")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileDamaged(
            f"{path} is not a whole safetensors file: {error}.", hint="It may be cut off; copy it again."
        ) from None
    return header, 8 + length
