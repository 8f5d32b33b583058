"""Reading and writing safetensors: what files a model folder has, which tensors are in them, and their values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError, WorkError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(r"[\w.-]+\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, each of them whole.

    RequestError where there are none (pickles are never read), FileDamaged where one is missing, truncated, or not what
    the index says.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        files: dict[Path, set[str] | None] = {folder / WEIGHTS: None}
    elif index.is_file():
        files = _indexed(index)
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise RequestError(
                f"{folder} has its weights as {pickles[0]}, a pickle, which can run any code and is never read.",
                hint="Convert it to safetensors where you trust it, then load the result.",
            )
        raise RequestError(f"{folder} has no {WEIGHTS}.", hint="Is the download complete?")
    for path, expected in files.items():
        found = tensor_names(path)
        if expected is not None and not expected <= found:
            raise FileDamaged(
                f"{path} lacks {listed(expected - found)}, which the index says it holds.", hint="Copy it again."
            )
    return list(files)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights of any kind, those that would be refused included."""
    return any(path.suffix in (".safetensors", *_PICKLES) or path.name == INDEX for path in folder.iterdir())


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a file. FileDamaged where it is missing or not a whole safetensors file."""
    if not path.is_file():
        raise FileDamaged(f"{path} is missing.", hint="Is the download complete?")
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise FileDamaged(
            f"{path} is not a whole safetensors file: {error}.", hint="It may be cut off; copy it again."
        ) from None


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor on the CPU) of every tensor, one at a time."""
    for path in files:
        names = sorted(tensor_names(path))
        with safe_open(path, "pt") as file:
            for name in names:
                yield name, file.get_tensor(name)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of `tensors`, wherever they lie. WorkError where the disk does not take it."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{path} could not be written: {error}.", hint="Free disk space.") from None


def fingerprint(folder: Path) -> str:
    """A name for the weights in a model folder: SHA-256 over each tensor's name, dtype, shape and bytes, by name.

    It does not depend on how the tensors are dealt to files. Files that have not changed are read once a process.
    """
    files = weight_files(folder)
    return _fingerprint(tuple((path, (stat := path.stat()).st_ino, stat.st_size, stat.st_mtime_ns) for path in files))


@lru_cache(maxsize=16)
def _fingerprint(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    where = {name: path for path, *_ in files for name in tensor_names(path)}
    digest = hashlib.sha256()
    for name in sorted(where):
        with safe_open(where[name], "pt") as file:
            tensor = file.get_tensor(name)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names of many, and how many there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _indexed(index: Path) -> dict[Path, set[str] | None]:
    found = atomic.read_json(index)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise FileDamaged(f"{index} has no weight_map.", hint="Copy it again.")
    files: dict[Path, set[str] | None] = {}
    for name, file in names.items():
        if not _SHARD.fullmatch(file):
            raise FileDamaged(f"{index} names {file!r}, which is not a safetensors file of this folder.")
        held = files.setdefault(index.parent / file, set())
        assert held is not None
        held.add(name)
    return files
