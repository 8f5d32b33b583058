"""What the tests of saving share: comparing models to the bit, and folders that differ from whole ones in one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hayless.model.checksums import NAME
from hayless.model.tensors import WEIGHTS


def check_same(model: PreTrainedModel, back: PreTrainedModel) -> None:
    """The same tensors under the same names, dtypes, ties and modes; the same buffers, those no file has included."""
    assert type(back) is type(model) and not back.training
    for found, expected in (
        (back.state_dict(), model.state_dict()),
        (dict(back.named_parameters()), dict(model.named_parameters())),
        (dict(back.named_buffers()), dict(model.named_buffers())),
    ):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name


def tokenizer(entries: int = 96) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with this many entries."""
    words = {"<s>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, entries)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")


def edit_config(folder: Path, *, remove: tuple[str, ...] = (), name: str = "config.json", **fields: Any) -> None:
    """Change fields of a JSON file in a folder, as someone would who does not mind checksums."""
    (folder / NAME).unlink(missing_ok=True)
    found = {**json.loads((folder / name).read_text()), **fields}
    (folder / name).write_text(json.dumps({key: value for key, value in found.items() if key not in remove}))


def edit_tensors(folder: Path, change: Any, name: str = WEIGHTS) -> None:
    """Rewrite a safetensors file of a folder with `change(tensors)` made in place."""
    (folder / NAME).unlink(missing_ok=True)
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
