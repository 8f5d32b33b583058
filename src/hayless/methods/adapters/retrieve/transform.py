"""Finding modules for a loaded model, and putting what they compose to on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.registry import method_of
from hayless.methods.adapters.library.opening import embedder
from hayless.methods.adapters.library.store import Library
from hayless.methods.adapters.retrieve.config import RetrieveConfig, composition
from hayless.model.transform import Change, Context


class Retrieve:
    """Fills the transform slot. What it leaves on a model is an adapter like any other, and is recorded as that."""

    @staticmethod
    def apply(model: PreTrainedModel, config: RetrieveConfig, context: Context) -> Change:
        """Find the modules nearest to the examples and put their composition on the model.

        Figures: the cosine of each module found, `similarity/NAME`, beside those of composing.
        """
        if context.tokenizer is None:
            raise RequestError("retrieve needs a tokenizer, and none was given.", hint="Give the context the model's.")
        library = Library(Path(config.library))
        asked = embedder(library, model, context.tokenizer).of(config.examples)
        found = library.search(asked, 1 if config.mix == "one" else config.top)
        composing = composition(config, [library.path(each.module.name) for each in found])
        change: Change = method_of(composing).load().apply(model, composing, context)
        near = {f"similarity/{each.module.name}": each.similarity for each in found}
        return replace(change, method=config.method, figures={**change.figures, **near})

    @staticmethod
    def restore(model: PreTrainedModel, config: RetrieveConfig) -> None:
        """Never on a record: what it leaves is."""
        raise RequestError("retrieve leaves a LoRA adapter, which is what a model is restored with.")
