"""Modules on a shelf: those that `run --modules` trained, libraries of all or some of them, and vectors of texts.

Modules are LoRAs of rank 4, one for each kind of task in each domain; no two have learnt from the same pieces of text.
Half of a task's held-out examples asks for its module, the other half is what results are of.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from benchmarks.adapting import tasks
from benchmarks.adapting.runs import MODULES, Place, base
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import RequestError
from hayless.data.examples import Example
from hayless.measure.quality import Document
from hayless.methods.adapters.library.embedding import Embedder
from hayless.methods.adapters.library.store import Library, Module, Vector
from hayless.model.load import load_tokenizer
from hayless.model.tensors import fingerprint

RANK = 4
_KNOWN = 32
"""Examples of its task by which a module is found later."""


@dataclass(frozen=True)
class Shelf:
    """Modules by name, with the vectors of what they have learnt."""

    place: Place
    names: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    embedder: Embedder
    vectors: Vector

    def model(self) -> PreTrainedModel:
        """The base, anew."""
        return copy.deepcopy(base(self.place))

    def folder(self, name: str) -> Path:
        """The adapter of a module."""
        return self.place.data / MODULES / name

    def learnt(self, name: str) -> list[Example]:
        """What a module has learnt from."""
        return tasks.examples(name, self.place.data)

    def data(self, name: str) -> tasks.Data:
        """The tokens of a module's task."""
        return tasks.data(name, self.place.model, self.place.data)

    def texts(self, documents: Sequence[Document]) -> list[str]:
        """What documents say, without the tokens that stand before and behind."""
        return self.tokenizer.batch_decode([each.tokens for each in documents], skip_special_tokens=True)

    def library(self, names: Sequence[str]) -> Library:
        """A library of these modules, in a folder of its own."""
        folder = Path(mkdtemp(prefix="hayless-"))
        made = {"model": None, "layer": self.embedder.layer}
        found = Library.create(folder / "library", fingerprint(self.place.model), made, self.embedder.width)
        for name in names:
            vector = self.vectors[self.names.index(name)]
            found.add(Module(name, "LORA", RANK), self.folder(name), vector)
        return found


def names_of(place: Place) -> tuple[str, ...]:
    """The modules that lie in the place. RequestError where there are none."""
    names = tuple(sorted(path.name for path in (place.data / MODULES).glob("*") if path.is_dir()))
    if not names:
        raise RequestError(f"{place.data / MODULES} has no modules.", hint="Train them: run --modules.")
    return names


@cache
def shelf(place: Place) -> Shelf:
    """The modules that lie in the place."""
    names = names_of(place)
    tokenizer = load_tokenizer(place.model)
    embedder = Embedder(base(place), tokenizer)
    known = [[each.text for each in tasks.examples(name, place.data)[:_KNOWN]] for name in names]
    return Shelf(place, names, tokenizer, embedder, np.stack([embedder.of(texts) for texts in known]))
