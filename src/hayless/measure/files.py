"""The bytes of a saved model's folder, by what they are for. Only safetensors count as weights or adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hayless.core.errors import RequestError

_TOKENIZER = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Bytes by kind: `weights` and `adapter` are safetensors, `other` is what is none of these."""

    weights: int
    adapter: int
    tokenizer: int
    config: int
    other: int

    @property
    def tensors(self) -> int:
        """Safetensors: what the model needs to run, an adapter's base included where it is in the folder."""
        return self.adapter + self.weights

    @property
    def total(self) -> int:
        """All bytes of the folder."""
        return self.weights + self.adapter + self.tokenizer + self.config + self.other


def file_bytes(folder: Path) -> FileBytes:
    """Bytes of every file under `folder` by kind; links count as what they point to."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder.", hint="Give the folder of a saved model.")
    found = dict.fromkeys(FileBytes.__slots__, 0)
    for path in folder.rglob("*"):
        if path.is_file():
            found[_kind(path)] += path.stat().st_size
    return FileBytes(**found)


def _kind(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "adapter" if path.name.startswith("adapter_model") else "weights"
    if path.name in _TOKENIZER:
        return "tokenizer"
    return "config" if path.suffix == ".json" else "other"
