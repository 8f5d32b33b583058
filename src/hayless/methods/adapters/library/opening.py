"""Making a library for a base, opening one, and adding to it: where the folder meets the model that makes vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core import atomic
from hayless.core.errors import RequestError
from hayless.methods.adapters.library.embedding import Embedder, SentenceEmbedder, Vectors
from hayless.methods.adapters.library.store import Library, Module
from hayless.model import adapters
from hayless.model.load import load_model, load_tokenizer
from hayless.model.source import SENTENCES, local_folder
from hayless.model.tensors import fingerprint


def create(folder: Path, base: str | Path, *, encoder: str | None = None, layer: int = -1) -> Library:
    """An empty library of modules for `base`. Vectors are the base's own states, unless `encoder` names another model:
    a language model, or a sentence encoder.

    RequestError where the base is not there, or the folder is not empty.
    """
    source = local_folder(base)
    width = _loaded(encoder or source, layer).width
    return Library.create(folder, fingerprint(source), {"model": encoder, "layer": layer}, width)


def embedder(library: Library, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Vectors:
    """What makes the library's vectors: `base` itself, or the encoder that it notes."""
    named, layer = library.embedding.get("model"), int(library.embedding.get("layer", -1))
    if named is None:
        return Embedder(base, tokenizer, layer)
    return _loaded(named, layer)


def _loaded(source: str | Path, layer: int) -> Vectors:
    """What makes vectors by the model in a folder or on the hub."""
    folder = local_folder(source)
    if (folder / SENTENCES).is_file():
        return SentenceEmbedder(folder)
    return Embedder(load_model(source), load_tokenizer(source), layer)


def add(
    library: Library,
    source: Path,
    examples: Sequence[str],
    made_by: Vectors,
    *,
    name: str | None = None,
    task: str = "",
    data: str = "",
    metrics: dict[str, float] | None = None,
) -> Module:
    """Add the adapter in `source`, found from now on by its task's `examples`; called as its folder unless named.

    NotSupported and RequestError for adapters that could not be put on the base."""
    config = adapters.read(source).config
    found = atomic.read_json(source / adapters.CONFIG)
    module = Module(
        name or source.resolve().name,
        found["peft_type"],
        getattr(config, "rank", getattr(config, "width", 0)),
        task,
        data,
        metrics or {},
    )
    if made_by.width != library.width:
        raise RequestError(
            f"The model makes vectors of {made_by.width} numbers, and the library has {library.width}.",
            hint="Give the base that the library was made for.",
        )
    library.add(module, source, made_by.of(examples))
    return module
