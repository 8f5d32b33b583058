"""Blocks that are finished, a file each, so that work which was stopped goes on behind them with the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.method import MethodConfig
from hayless.methods.common.weights import Weight

_AGAIN = "Delete the folder to start over."


class Finished:
    """The finished blocks in `folder`, made from what `made_from` names; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, made_from: str) -> None:
        self._folder = folder
        if folder is None:
            return
        about = folder / "blocks.json"
        if not about.exists():
            atomic.write_json(about, {"made_from": made_from})
        elif atomic.read_json(about) != {"made_from": made_from}:
            raise RequestError(f"{folder} has blocks made from other weights, text or settings.", hint=_AGAIN)

    def write(self, number: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Keep the tensors of a block and what is to be said of it: the whole file is there or none of it."""
        if self._folder is not None:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            atomic.write_bytes(self._path(number), save(held, {"record": json.dumps(record)}))

    def read(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept of a block; None where it is not finished. FileDamaged for a file that is not whole."""
        if self._folder is None or not self._path(number).exists():
            return None
        try:
            with safe_open(self._path(number), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
                return tensors, json.loads(file.metadata()["record"])
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise FileDamaged(f"{self._path(number)} is not whole: {error}.", hint=_AGAIN) from None

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"block-{number}.safetensors"


def digest(config: MethodConfig, weights: Iterable[Weight], batches: Sequence[Tensor]) -> str:
    """A hash of everything that decides what becomes of the blocks."""
    found = hashlib.sha256(config.model_dump_json().encode())
    for weight in weights:
        found.update(weight.name.encode())
        found.update(_bytes(weight.parameter.detach()))
    for batch in batches:
        found.update(str(tuple(batch.shape)).encode())
        found.update(_bytes(batch))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
