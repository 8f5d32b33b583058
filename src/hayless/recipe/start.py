"""What a recipe starts from: the device, the tokenizer, the data and the model it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.compose import predict as rewrite
from hayless.core.families import ledger_of
from hayless.core.method import MethodConfig
from hayless.core.progress import Progress
from hayless.data.store import Kind, Prepared, prepare
from hayless.data.tokenizer import train_tokenizer
from hayless.model.build import build_model, checked_device
from hayless.model.load import check_tokenizer, load_tokenizer
from hayless.model.new_tokens import Added, extend
from hayless.model.streaming import load_and_pack, packs_one_by_one
from hayless.model.transform import Change, Context
from hayless.model.vocabulary import backend_of, grow
from hayless.recipe.prediction import NEW_TOKENS, complete_config, starting_point
from hayless.recipe.schema import ApplyStep, Recipe, TokenizerSection

_ROOM = 0.9
"""The share of a device's memory that the weights of a model may fill."""


class Start:
    """The parts of `recipe`, each made when it is asked for; prepared data is kept in `folder` and reused."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.device = checked_device(recipe.device)
        self._folder = folder
        self._progress = progress
        self._say = say
        self._prepared: dict[Kind, Prepared] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The recipe's tokenizer: trained on its data, named, or the model's own; with the new tokens."""
        return self._words[0]

    @property
    def added(self) -> Added | None:
        """The new tokens, if the recipe names some."""
        return self._words[1] if self.recipe.model.new_tokens is not None else None

    @cached_property
    def _words(self) -> tuple[PreTrainedTokenizerBase, Added | None]:
        found, wanted = self._named_tokenizer(), self.recipe.model.new_tokens
        if wanted is None:
            return found, None
        added = extend(backend_of(found), wanted, names=NEW_TOKENS)
        self._say("new tokens: " + ", ".join(f"{token!r} ({number:,})" for token, number in added.numbers.items()))
        return found, added

    def _named_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer before new tokens."""
        section = self.recipe.model
        if isinstance(section.tokenizer, TokenizerSection):
            assert self.recipe.data is not None, "the schema asks for data where a tokenizer is trained"
            level, entries = section.tokenizer.level, section.learnt_entries
            return train_tokenizer(self.recipe.data, level, entries, self._folder, progress=self._progress)
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

    @property
    def holds_packed(self) -> bool:
        """Whether the device holds the model that `packed_model` gives, which later steps may pack more."""
        return self._holds(self.packers)

    def _holds(self, packers: Sequence[MethodConfig]) -> bool:
        limit = _capacity(self.device)
        if limit is None:
            return True
        dims, before = starting_point(self.recipe.model)
        return rewrite(ledger_of(dims), [*before, *packers]).weight_bytes < _ROOM * limit

    @cached_property
    def packers(self) -> list[MethodConfig]:
        """The methods of the recipe's first steps that pack each weight by itself: as the model is read."""
        if self.recipe.model.path is None or self.recipe.model.new_tokens is not None:
            return []
        applied = takewhile(lambda step: isinstance(step, ApplyStep), self.recipe.steps)
        methods = [step.apply for step in applied if isinstance(step, ApplyStep)]
        return list(takewhile(packs_one_by_one, methods))

    def model(self) -> PreTrainedModel:
        """The model as it is before the first step, checked against the tokenizer where there is one.

        It is on the device, or on the CPU where the device does not hold it.
        """
        return self._model([], None)[0]

    def packed_model(self, context: Context) -> tuple[PreTrainedModel, list[Change]]:
        """The model as it is after `packers`, and what they did; checked and placed as `model` is."""
        return self._model(self.packers, context)

    def _model(self, packers: Sequence[MethodConfig], context: Context | None) -> tuple[PreTrainedModel, list[Change]]:
        changes: list[Change] = []
        section, device = self.recipe.model, self.device if self._holds(packers) else torch.device("cpu")
        if section.config is not None:
            ids = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
            model = build_model(
                {**ids, **complete_config(section)},
                dtype=section.dtype or "float32",
                device=device,
                seed=self.recipe.seed,
                task=section.task,
            )
        else:
            assert section.path is not None
            model, changes = load_and_pack(
                section.path,
                packers,
                dtype=section.dtype,
                device=device,
                revision=section.revision,
                task=section.task,
                context=context,
            )
        if self.added is not None:
            grow(model, self.added)
        if self.uses_text:
            check_tokenizer(model, self.tokenizer)
        return model, changes

    @property
    def uses_text(self) -> bool:
        """Whether anything in the recipe reads text, so that there must be a tokenizer."""
        section = self.recipe.model
        named = (self.recipe.data, self.recipe.calibration, section.config, section.new_tokens)
        return any(each is not None for each in named)


def _capacity(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for what shares the computer's."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
