"""The folder of a library: adapters as PEFT has them, what is known of each, and one matrix of their vectors.

    library.json          the base's fingerprint, how vectors are made, and the modules in the order of their rows
    vectors.f32           their vectors, one row after the other, float32
    modules/NAME/         adapter_config.json, adapter_model.safetensors

A module is there once library.json names it: it is written last, as a whole, so that a crash leaves what was there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError, bad_value, unknown
from hayless.model import adapters
from hayless.model.tensors import tensor_names

INDEX = "library.json"
VECTORS = "vectors.f32"
MODULES = "modules"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FLOAT = 4
_TINY = 1e-12
_SEVERAL = 4
"""So many modules have a mean that is worth taking away."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its kind as PEFT calls it, its rank or width if it has one; the task and data that it was trained on,
    and how good it was there."""

    name: str
    kind: str
    rank: int = 0
    task: str = ""
    data: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A module that was searched for, and the cosine between its vector and what was asked."""

    module: Module
    similarity: float


class Library:
    """A library that lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: tuple[Vector, Vector] | None = None
        index = folder / INDEX
        if not index.is_file():
            raise RequestError(
                f"{folder} is no library of modules: it has no {INDEX}.", hint="Make one: Library.create."
            )
        found = atomic.read_json(index)
        try:
            self.base: str = found["base_fingerprint"]
            self.embedding: dict[str, Any] = found["embedding"]
            self.width = int(found["width"])
            self.modules = [Module(**entry) for entry in found["modules"]]
        except (KeyError, TypeError, ValueError) as error:
            raise FileDamaged(
                f"{index} is not what a library has: {error!r}.", hint="Copy the library again."
            ) from None
        held = (folder / VECTORS).stat().st_size if (folder / VECTORS).is_file() else 0
        if held < len(self.modules) * self.width * _FLOAT:
            raise FileDamaged(
                f"{folder / VECTORS} is shorter than its {len(self.modules)} modules.", hint="Copy it again."
            )

    @classmethod
    def create(cls, folder: Path, base_fingerprint: str, embedding: dict[str, Any], width: int) -> Library:
        """An empty library. RequestError where something lies in the folder."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RequestError(f"{folder} is there already.", hint="Give another folder, or add to the library in it.")
        (folder / MODULES).mkdir(parents=True)
        (folder / VECTORS).touch()
        _write(folder, base_fingerprint, embedding, width, [])
        return cls(folder)

    @property
    def vectors(self) -> Vector:
        """The modules' vectors (modules, width), mapped from the file."""
        shape = (len(self.modules), self.width)
        if not self.modules:
            return np.zeros(shape, np.float32)
        return np.memmap(self.folder / VECTORS, np.float32, "r", shape=shape)

    def path(self, name: str) -> Path:
        """The PEFT folder of a module. RequestError, with near names, for one that is not there."""
        self[name]
        return self.folder / MODULES / name

    def __getitem__(self, name: str) -> Module:
        return self.modules[self._row(name)]

    def add(self, module: Module, source: Path, vector: Vector) -> None:
        """Copy the adapter in `source` into the library.

        RequestError for a name that is taken or impossible, for an adapter of another base, and for a vector of another
        width, or of numbers that are none.
        """
        if not _NAME.fullmatch(module.name):
            raise bad_value("name", module.name, allowed="letters, digits, '.', '_' and '-', at most 100")
        if any(each.name == module.name for each in self.modules):
            raise RequestError(
                f"The library has a module {module.name!r} already.", hint="Remove it, or take another name."
            )
        if vector.shape != (self.width,) or not np.isfinite(vector).all():
            raise bad_value("vector", vector.shape, allowed=f"{self.width} finite numbers")
        self._check_base(source)
        tensor_names(source / adapters.WEIGHTS)
        target = self.folder / MODULES / module.name
        shutil.rmtree(target, ignore_errors=True)
        with atomic.folder(target) as partial:
            for name in (adapters.CONFIG, adapters.WEIGHTS, adapters.OURS):
                if (source / name).is_file():
                    shutil.copyfile(source / name, partial / name)
        with (self.folder / VECTORS).open("r+b") as file:
            file.truncate(len(self.modules) * self.width * _FLOAT)
            file.seek(0, 2)
            file.write(vector.astype(np.float32).tobytes())
        self._keep([*self.modules, module])

    def remove(self, name: str) -> None:
        """Take a module out of the library, with its files."""
        row = self._row(name)
        kept = np.delete(self.vectors, row, axis=0)
        left = [module for module in self.modules if module.name != name]
        atomic.write_bytes(self.folder / VECTORS, kept.tobytes())
        self._keep(left)
        shutil.rmtree(self.folder / MODULES / name, ignore_errors=True)

    def search(self, vector: Vector, top: int) -> list[Found]:
        """The modules nearest to a vector by cosine, nearest first: one product with the whole matrix.

        Vectors of a language model have much in common (Ethayarajh, 2019, arXiv:1909.00512), so that all cosines lie
        close together: where there are several modules, their mean is taken away from all.
        """
        if not self.modules:
            raise RequestError(f"The library in {self.folder} is empty.", hint="Add modules to it.")
        if top < 1:
            raise bad_value("top", top, allowed="at least 1")
        mean, lengths = self._spread()
        asked = vector - mean
        near = (self.vectors @ asked - float(mean @ asked)) / (lengths * max(float(np.linalg.norm(asked)), _TINY))
        top = min(top, len(near))
        first = np.argpartition(-near, top - 1)[:top]
        return [Found(self.modules[row], float(near[row])) for row in first[np.argsort(-near[first], kind="stable")]]

    def _spread(self) -> tuple[Vector, Vector]:
        """The mean of all vectors, and how far each is from it; found once between changes."""
        if self._seen is None:
            vectors = self.vectors
            mean = vectors.mean(0) if len(vectors) >= _SEVERAL else np.zeros(self.width, np.float32)
            self._seen = mean, np.maximum(np.linalg.norm(vectors - mean, axis=1), _TINY)
        return self._seen

    def _check_base(self, source: Path) -> None:
        path = source / adapters.OURS
        if not path.is_file():
            return
        noted = atomic.read_json(path)
        if isinstance(noted, dict) and noted.get("base_fingerprint") not in (None, self.base):
            raise RequestError(
                f"The adapter in {source} was trained on another base than this library's.",
                hint="A library holds modules of one base; make another for this one.",
            )

    def _row(self, name: str) -> int:
        names = [module.name for module in self.modules]
        if name not in names:
            raise unknown("module", name, names)
        return names.index(name)

    def _keep(self, modules: Sequence[Module]) -> None:
        _write(self.folder, self.base, self.embedding, self.width, modules)
        self.modules, self._seen = list(modules), None


def _write(folder: Path, base: str, embedding: dict[str, Any], width: int, modules: Sequence[Module]) -> None:
    content = {"base_fingerprint": base, "embedding": embedding, "width": width}
    atomic.write_json(folder / INDEX, {**content, "modules": [asdict(module) for module in modules]})
