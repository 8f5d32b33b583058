"""A small Llama that has learnt something, for claims that random weights cannot show (recipes/small-llama.yaml).

It was trained on the standard library of Python 3.11. `text` gives modules whose names were held out then.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.data import stdlib
from hayless.data.split import position
from hayless.data.tokenizer import encode
from hayless.measure.quality import Document, quality
from hayless.model.load import load_model, load_tokenizer

FOLDER = Path(__file__).parent / "assets" / "small-llama"
CONTEXT = 256
HELDOUT = 0.05
"""The share of names that the recipe holds out."""
_NAMES = ("contextlib.py", "statistics.py", "posixpath.py", "pkgutil.py", "tarfile.py", "doctest.py")


def model(dtype: str = "float32") -> PreTrainedModel:
    """A new copy of it."""
    return load_model(FOLDER, dtype=dtype)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """Its tokenizer."""
    return load_tokenizer(FOLDER)


@cache
def text(tokens: int = 700) -> list[Document]:
    """The beginnings of modules it has never seen, of so many tokens each."""
    documents = []
    for name in _NAMES:
        assert position(f"lib/{name}") < HELDOUT, f"{name} was trained on"
        source = (stdlib.places().library / name).read_text(encoding="utf-8")
        ids = encode(tokenizer(), [source])[0][:tokens]
        size = len(tokenizer().decode(ids).encode())
        documents.append(Document(name, torch.tensor(ids), size))
    return documents


def bits_per_byte(found: PreTrainedModel, documents: Sequence[Document] | None = None) -> float:
    """Of a model with this tokenizer, on `text` if nothing else is given."""
    return quality(found, documents or text(), begin=tokenizer().bos_token_id, context=CONTEXT).bits_per_byte.value
