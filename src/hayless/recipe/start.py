"""What a recipe starts from: the device, the tokenizer, the data and the model it names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.progress import Progress
from hayless.data.store import Kind, Prepared, prepare
from hayless.data.tokenizer import train_tokenizer
from hayless.model.build import build_model, checked_device
from hayless.model.load import check_tokenizer, load_model, load_tokenizer
from hayless.recipe.prediction import complete_config
from hayless.recipe.schema import Recipe, TokenizerSection


class Start:
    """The parts of `recipe`, each made when it is asked for; prepared data is kept in `folder` and reused."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.device = checked_device(recipe.device)
        self._folder = folder
        self._progress = progress
        self._say = say
        self._prepared: dict[Kind, Prepared] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The recipe's tokenizer: trained on its data, named, or the model's own."""
        section = self.recipe.model
        if isinstance(section.tokenizer, TokenizerSection):
            assert self.recipe.data is not None, "the schema asks for data where a tokenizer is trained"
            wanted = section.tokenizer
            return train_tokenizer(
                self.recipe.data, wanted.level, wanted.vocab_size, self._folder, progress=self._progress
            )
        if section.tokenizer is not None:
            return load_tokenizer(section.tokenizer)
        assert section.path is not None, "the schema asks for a tokenizer where a model is new"
        return load_tokenizer(section.path, section.revision)

    def data(self, kind: Kind) -> Prepared:
        """The recipe's data as tokens, said in words the first time."""
        if kind not in self._prepared:
            assert self.recipe.data is not None, "the schema asks for data where a step needs it"
            found = prepare(self.recipe.data, self.tokenizer, self._folder, kind=kind, progress=self._progress)
            self._say(found.description)
            self._prepared[kind] = found
        return self._prepared[kind]

    def model(self) -> PreTrainedModel:
        """The model as it is before the first step, checked against the tokenizer where there is one."""
        section = self.recipe.model
        if section.config is not None:
            ids = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
            model = build_model(
                {**ids, **complete_config(section)},
                dtype=section.dtype or "float32",
                device=self.device,
                seed=self.recipe.seed,
                task=section.task,
            )
        else:
            assert section.path is not None
            model = load_model(
                section.path, dtype=section.dtype, device=self.device, revision=section.revision, task=section.task
            )
        if self.uses_text:
            check_tokenizer(model, self.tokenizer)
        return model

    @property
    def uses_text(self) -> bool:
        """Whether anything in the recipe reads text, so that there must be a tokenizer."""
        return self.recipe.data is not None or self.recipe.model.config is not None
