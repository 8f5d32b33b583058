"""The tensors of a model folder by Hugging Face's names, one at a time, put together as a model holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from hayless.core.errors import FileDamaged
from hayless.core.ledger import Ledger, Row, Stored
from hayless.core.packing import Format
from hayless.model.tensors import listed, tensor_names, weight_files

HINT = "config.json and weights must belong to one model; copy the folder again."


class Checkpoint:
    """The weights in `folder`, open within a `with` block; each tensor is read when it is asked for and noted as taken.

    `prefix` is what names in files may lack before the model's own (`transformer.`).
    """

    def __init__(self, folder: Path) -> None:
        """RequestError where there are no weights, FileDamaged where a file is not whole or a name is there twice."""
        self.folder = folder
        self.prefix = ""
        self._where: dict[str, Path] = {}
        for path in weight_files(folder):
            for name in tensor_names(path):
                if name in self._where:
                    raise FileDamaged(f"{folder} has {name} twice.", hint=HINT)
                self._where[name] = path
        self._files: dict[Path, Any] = {}
        self._stack = ExitStack()
        self._taken: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def take(self, name: str) -> Tensor:
        """One tensor, on the CPU. FileDamaged where it is not there."""
        found = self._called(name)
        if found not in self._where:
            raise FileDamaged(f"{self.folder} lacks {name}.", hint=HINT)
        self._taken.add(found)
        path = self._where[found]
        if path not in self._files:
            self._files[path] = self._stack.enter_context(safe_open(path, "pt"))
        tensor: Tensor = self._files[path].get_tensor(found)
        return tensor

    @property
    def dtype(self) -> torch.dtype:
        """That of the first tensor of floating numbers."""
        return next(tensor.dtype for tensor in map(self.take, self._where) if tensor.is_floating_point())

    def are_of(self, ledger: Ledger, ignored: Iterable[str] = ()) -> bool:
        """Whether the tensors are those of a plain model, but for names that the patterns `ignored` find."""
        wanted = {self._called(entry.name) for row in ledger.rows for _, entry in row.entries(on_disk=True)}
        spare = [name for name in self._where if not any(re.search(pattern, name) for pattern in ignored)]
        return wanted <= self._where.keys() and wanted.issuperset(spare)

    def parameter(self, row: Row, layer: int) -> Tensor:
        """A parameter that is not packed: stacks of experts and fused matrices are put together."""
        parts = [self._part(stored, layer) for stored in row.disk or row.held]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def packed(self, row: Row, layer: int, form: Format) -> dict[str, Tensor]:
        """The tensors of a weight in another library's layout, by the names of its format's `disk`."""
        names = (piece.name for piece in form.disk(row.dtype))
        return {
            name: self.take(stored.name.replace("{layer}", str(layer)))
            for name, stored in zip(names, row.disk, strict=True)
        }

    def check_taken(self) -> None:
        """FileDamaged where tensors were left over."""
        left = self._where.keys() - self._taken
        if left:
            raise FileDamaged(f"{self.folder} has, beside the model's, {listed(left)}.", hint=HINT)

    def _called(self, name: str) -> str:
        """What the files call a tensor."""
        return name if name in self._where else name.removeprefix(self.prefix)

    def _part(self, stored: Stored, layer: int) -> Tensor:
        name = stored.name.replace("{layer}", str(layer))
        if not stored.experts:
            return self.take(name)
        return torch.stack([self.take(name.replace("{expert}", str(expert))) for expert in range(stored.experts)])
