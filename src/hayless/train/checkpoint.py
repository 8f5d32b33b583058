"""Checkpoints: everything a run needs to go on with the same bits, as safetensors and JSON.

A checkpoint is a folder `step-00000120` (120 updates done) that appears whole by one rename:

    weights-N.safetensors    what the optimizer moves (fp32 masters in `master`), and buffers that changed
    optimizer-N.safetensors  moments
    random-N.safetensors     states of the random generators
    state.json               numbers: step, tokens, best, patience, loss scale, ...
    checksums.json           bytes and SHA-256 of each of the others

Frozen weights are not in it: they are those the run began with.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hayless.core import atomic
from hayless.core.errors import FileDamaged, WorkError
from hayless.core.files import TensorEntry, shards

_NAME = re.compile(r"step-(\d{8,})")
_CHECKSUMS = "checksums.json"
_STATE = "state.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint holds: groups of tensors by name, and plain data (JSON)."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, in `folder`; the last `keep_last` are kept, and the best."""

    def __init__(self, folder: Path, keep_last: int, say: Say) -> None:
        self.folder = folder
        self._keep_last = keep_last
        self._say = say

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, whole or damaged, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, snapshot: Snapshot, best: int | None) -> Path:
        """Write a checkpoint, then delete those no longer kept. `best` names the step of the best one so far.

        WorkError when it cannot be written, on a full disk say; the earlier ones are then untouched.
        """
        path = self.path(step)
        try:
            with atomic.folder(path) as partial:
                for group, tensors in snapshot.tensors.items():
                    _write_tensors(partial, group, tensors)
                atomic.write_json(partial / _STATE, dict(snapshot.state))
                sums = {file.name: _checksum(file) for file in sorted(partial.iterdir())}
                atomic.write_json(partial / _CHECKSUMS, sums)
        except SafetensorError as error:
            raise WorkError(f"{path} could not be written: {error}.", hint="Free disk space.") from error
        self._prune(step, best)
        return path

    def latest(self) -> tuple[int, Snapshot] | None:
        """(step, content) of the newest checkpoint that is whole; None where there is none at all.

        A damaged one is said and passed over. FileDamaged when all are.
        """
        self._sweep()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.load(step)
            except FileDamaged as error:
                self._say(f"Checkpoint {self.path(step)} is damaged and is not used: {error.message}")
        if steps:
            raise FileDamaged(
                f"Every checkpoint in {self.folder} is damaged.", hint="Delete the folder to train from the start."
            )
        return None

    def load(self, step: int) -> Snapshot:
        """The content of one checkpoint, on the CPU. FileDamaged unless every byte is as it was written."""
        path = self.path(step)
        sums = _mapping(path / _CHECKSUMS)
        there = {file.name for file in path.iterdir()} - {_CHECKSUMS}
        if odd := sorted(there ^ sums.keys()):
            raise FileDamaged(f"{path / odd[0]} is {'not listed' if odd[0] in there else 'missing'}.")
        for name, wanted in sums.items():
            if _checksum(path / name) != wanted:
                raise FileDamaged(f"{path / name} is not as it was written.")
        tensors: dict[str, dict[str, Tensor]] = {}
        for name in sums:
            if name.endswith(".safetensors"):
                tensors.setdefault(name.rpartition("-")[0], {}).update(load_file(path / name))
        return Snapshot(tensors, _mapping(path / _STATE))

    def _prune(self, newest: int, best: int | None) -> None:
        # Checkpoints after the newest were damaged: the run went back before them and passes them again.
        steps = self.steps()
        kept = {*[step for step in steps if step <= newest][-self._keep_last :], best}
        for step in steps:
            if step not in kept:
                # Renamed first: a folder half deleted must not look like a checkpoint.
                doomed = self.folder / f".step-{step:08d}.deleted"
                shutil.rmtree(doomed, ignore_errors=True)
                self.path(step).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _sweep(self) -> None:
        """Finish or undo what a killed process left half done."""
        if not self.folder.is_dir():
            return
        for left in self.folder.glob(".step-*.old"):
            atomic.recover(left.with_name(left.name.removeprefix(".").removesuffix(".old")))
        for pattern in (".step-*.partial", ".step-*.old", ".step-*.deleted"):
            for left in self.folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)


def _write_tensors(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> None:
    entries = [TensorEntry(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()]
    # In shards, because each is copied to host memory whole before it is written.
    for number, shard in enumerate(shards(entries), start=1):
        held = {entry.name: tensors[entry.name].detach().contiguous() for entry in shard}
        save_file(held, folder / f"{group}-{number}.safetensors", metadata={"format": "pt"})


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileDamaged(f"{path} is missing.")
    found = atomic.read_json(path)
    if not isinstance(found, dict):
        raise FileDamaged(f"{path} holds {type(found).__name__}, not an object.")
    return found
