"""Finding modules for a loaded model, and putting what they become on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel

from hayless.core.beside import MIXTURE
from hayless.core.errors import RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.methods.adapters.library.opening import embedder
from hayless.methods.adapters.library.store import Found, Library
from hayless.methods.adapters.retrieve.arrow import routed
from hayless.methods.adapters.retrieve.config import RetrieveConfig, composition, mixture, opened
from hayless.methods.common.adapting import check_same_base, trained
from hayless.methods.common.sites import PEFT_PREFIX
from hayless.model import adapters
from hayless.model.transform import Change, Context, apply, forget


class Retrieve:
    """Fills the transform slot. What it leaves on a model is an adapter like any other, and is recorded as that."""

    @staticmethod
    def apply(model: PreTrainedModel, config: RetrieveConfig, context: Context) -> Change:
        """Find the modules nearest to the examples and put their composition, or a mixture of them, on the model.

        Figures: the cosine of each module found, `similarity/NAME`, beside those of what it becomes.
        """
        library = opened(config)
        if config.per == "token":
            return _mixed(model, config, library, context)
        found = _nearest(model, config, library, context, config.taken)
        folders = [library.path(each.module.name) for each in found]
        composing = composition(config, folders, _shares(config, found))
        change: Change = method_of(composing).load().apply(model, composing, context)
        return replace(change, method=config.method, figures={**change.figures, **_similarities(found)})

    @staticmethod
    def restore(model: PreTrainedModel, config: RetrieveConfig) -> None:
        """Never on a record: what it leaves is."""
        raise RequestError("retrieve leaves an adapter, which is what a model is restored with.")


@contextmanager
def answering(model: PreTrainedModel, config: MethodConfig, request: str, context: Context) -> Iterator[Change]:
    """Inside the block the model has what `config` finds for one request; after it, it is as it was."""
    (change,) = apply(model, [config.model_copy(update={"examples": (request,)})], context)
    try:
        yield change
    finally:
        for left in change.leaves or ():
            method_of(left).load().remove(model, left)
            forget(model, left)


def _mixed(model: PreTrainedModel, config: RetrieveConfig, library: Library, context: Context) -> Change:
    """A mixture whose gate is made of the modules themselves."""
    found = _nearest(model, config, library, context, config.among) if config.among else []
    modules = [each.module for each in found] or library.modules
    folders = [library.path(module.name) for module in modules]
    check_same_base(folders, model)
    made = mixture(config, folders)
    adapter = routed([adapters.read(folder) for folder in folders], made)
    part = method_of(made).load()
    part.restore(model, made)
    part.load(model, made, adapter.tensors)
    paths = sorted({name.removeprefix(PEFT_PREFIX).partition(f".{MIXTURE}.")[0] for name in adapter.tensors})
    figures = {**trained(model), "modules": float(len(folders)), **_similarities(found)}
    return Change(config.method, tuple(paths), figures=figures, leaves=(made,))


def _nearest(
    model: PreTrainedModel, config: RetrieveConfig, library: Library, context: Context, count: int
) -> list[Found]:
    if context.tokenizer is None:
        raise RequestError("retrieve needs a tokenizer, and none was given.", hint="Give the context the model's.")
    return library.search(embedder(library, model, context.tokenizer).of(config.examples), count)


def _shares(config: RetrieveConfig, found: Sequence[Found]) -> tuple[float, ...] | None:
    """What each module counts; None for equal shares."""
    if config.temperature is None:
        return None
    scores = np.array([each.similarity for each in found]) / config.temperature
    grown = np.exp(scores - scores.max())
    return tuple((grown / grown.sum()).tolist())


def _similarities(found: Sequence[Found]) -> dict[str, float]:
    return {f"similarity/{each.module.name}": each.similarity for each in found}
