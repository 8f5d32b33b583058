"""Finding modules for a loaded model, and what they become: one adapter for a task, one for each request, or a mixture
in which each token chooses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.registry import method_of
from hayless.methods.adapters.library.embedding import Vectors
from hayless.methods.adapters.library.opening import embedder
from hayless.methods.adapters.library.store import Found, Library
from hayless.methods.adapters.retrieve.arrow import routed
from hayless.methods.adapters.retrieve.config import RetrieveConfig, composition, mixture, opened
from hayless.methods.common.adapting import put_on, read_modules
from hayless.model.adapters import Adapter
from hayless.model.transform import Change, Context

Made = tuple[Adapter, dict[str, float]]
"""An adapter, and figures about it: the cosine of each module found, `similarity/NAME`, beside those of composing."""


class Retrieve:
    """Fills the transform slot. What it leaves on a model is an adapter like any other, and is recorded as that."""

    @staticmethod
    def apply(model: PreTrainedModel, config: RetrieveConfig, context: Context) -> Change:
        """Find the modules nearest to the examples and put their composition, or a mixture of them, on the model."""
        library = opened(config)
        if config.per == "token":
            adapter, figures = _mixed(model, config, library, context)
        else:
            found = library.search(_vectors(model, library, context).of(config.examples), config.taken)
            adapter, figures = _composed(model, config, library, found, context)
        return put_on(model, config.method, adapter, figures)

    @staticmethod
    def restore(model: PreTrainedModel, config: RetrieveConfig) -> None:
        """Never on a record: what it leaves is."""
        raise RequestError("retrieve leaves an adapter, which is what a model is restored with.")


def for_requests(
    model: PreTrainedModel, config: RetrieveConfig, requests: Sequence[str], context: Context
) -> list[Made]:
    """What each request's nearest modules become, by its own text in the examples' place; the model stays as it is.

    Rows of one batch can have them from an AdapterBank (`hayless.decode.bank`); `Adapter.put_on` puts one on the model.
    """
    library = opened(config)
    asked = _vectors(model, library, context).one_each(requests)
    return [_composed(model, config, library, library.search(each, config.taken), context) for each in asked]


def _composed(
    model: PreTrainedModel, config: RetrieveConfig, library: Library, found: Sequence[Found], context: Context
) -> Made:
    folders = [library.path(each.module.name) for each in found]
    composing = composition(config, folders, _shares(config, found))
    adapter, figures = method_of(composing).load().made(model, composing, context)
    return adapter, {**figures, **_similarities(found)}


def _mixed(model: PreTrainedModel, config: RetrieveConfig, library: Library, context: Context) -> Made:
    """A mixture whose gate is made of the modules themselves."""
    found: Sequence[Found] = ()
    if config.among:
        found = library.search(_vectors(model, library, context).of(config.examples), config.among)
    modules = [each.module for each in found] or library.modules
    folders = [library.path(module.name) for module in modules]
    made = mixture(config, folders)
    adapter = routed(read_modules(model, folders), made)
    return adapter, {"modules": float(len(folders)), **_similarities(found)}


def _vectors(model: PreTrainedModel, library: Library, context: Context) -> Vectors:
    if context.tokenizer is None:
        raise RequestError("retrieve needs a tokenizer, and none was given.", hint="Give the context the model's.")
    return embedder(library, model, context.tokenizer)


def _shares(config: RetrieveConfig, found: Sequence[Found]) -> tuple[float, ...] | None:
    """What each module counts; None for equal shares."""
    if config.temperature is None:
        return None
    scores = np.array([each.similarity for each in found]) / config.temperature
    grown = np.exp(scores - scores.max())
    return tuple((grown / grown.sum()).tolist())


def _similarities(found: Sequence[Found]) -> dict[str, float]:
    return {f"similarity/{each.module.name}": each.similarity for each in found}
