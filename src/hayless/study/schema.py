"""What a study is: recipes to run under one budget, and what they are compared with. No torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from hayless.core.errors import RequestError, unknown
from hayless.core.options import ByteCount, Count, Options
from hayless.core.registry import method_of
from hayless.recipe import yaml
from hayless.recipe.load import load as load_recipe
from hayless.recipe.load import validate
from hayless.recipe.prediction import decode_shape, flops_per_token
from hayless.recipe.schema import ApplyStep, Recipe, Train, TrainStep
from hayless.study import peers
from hayless.study.peers import PeerName

RESERVED = frozenset({"data", "logs", "recipes"})
"""Names in a study's folder that no row's folder may have."""


class Budget(Options):
    """What a row may spend: exactly one of tokens, flops, seconds and memory."""

    tokens: Count | None = Field(None, ge=1, description="Tokens a row trains on, whatever its recipe says.")
    flops: float | None = Field(
        None, gt=0, description="FLOPs a row trains for: tokens follow from its own model and methods."
    )
    seconds: float | None = Field(None, gt=0, description="Wall time a row may take in all; it is then stopped.")
    memory: ByteCount | None = Field(
        None, ge=1, description="Bytes; a row whose measured peak is above it is marked and takes no rank."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.tokens, self.flops, self.seconds, self.memory)) != 1:
            raise ValueError("give exactly one of tokens, flops, seconds and memory")
        return self


class Row(Options):
    """One contender: a recipe with overrides, and what was published about it."""

    label: str = Field(min_length=1, max_length=100, description="What the row is called; labels differ.")
    recipe: str | dict[str, Any] = Field(
        description="A recipe's file (seen from the current folder), or the recipe itself."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="key: value, as on the command line: kmeans.bits: 3."
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="key: [values]; the row becomes one for each combination."
    )
    published: dict[str, float] = Field(
        default_factory=dict, description="Published figures by measurement name, such as file_bytes: 2.1e6."
    )
    source: str = Field("", description="Where the published figures come from.")
    peer: PeerName | None = Field(
        None, description="Another library that carries the recipe out instead of hayless, to be compared with."
    )
    budgeted: bool = Field(
        True, description="Whether the budget holds for it; say false for a model that other rows start from."
    )

    @field_validator("grid")
    @classmethod
    def _values(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"{key} has no values")
        return value


class Study(Options):
    """Many runs under one budget, and the row they are compared with."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Names the study's folder.")
    rows: tuple[Row, ...] = Field(min_length=1, description="What is run and compared.")
    baseline: str | None = Field(None, description="Label of the row the others are compared with; the first if none.")
    budget: Budget | None = Field(None, description="What a row may spend; as its recipe says if not given.")
    seeds: tuple[int, ...] = Field((), description="Each row is run once for each of these seeds.")
    parallel: int = Field(1, ge=1, le=64, description="Rows run at once where memory allows; it disturbs their times.")
    folder: str | None = Field(None, description="Where the runs go; runs/NAME if not given.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        labels = [row.label for row in self.rows]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"the label {twice[0]!r} stands twice; labels must differ")
        if self.baseline is not None and self.baseline not in labels:
            raise ValueError(str(unknown("baseline", self.baseline, labels)).replace("\n ", ""))
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise ValueError("seeds must be different whole numbers of at least 0")
        return self

    @property
    def path(self) -> Path:
        """The study's folder."""
        return Path(self.folder) if self.folder else Path("runs") / self.name


@dataclass(frozen=True, slots=True)
class Contender:
    """One run of a study: a row at one point of its grid and one seed, its recipe resolved."""

    label: str
    slug: str
    """Name of the run's folder inside the study's."""
    recipe: Recipe
    row: Row

    @property
    def peer(self) -> str:
        """The peer that carries the recipe out, or an empty string."""
        return self.row.peer or ""


def load(source: Path | str | Mapping[str, Any]) -> Study:
    """A Study from a YAML file or a mapping. RequestError lists every mistake with its place."""
    text = yaml.Text(dict(source), {}, "study") if isinstance(source, Mapping) else yaml.read(Path(source))
    if not isinstance(text.data, dict):
        raise RequestError(f"{text.source} holds no study: a mapping with name and rows is expected.")
    return validate(Study, text)


def contenders(study: Study) -> list[Contender]:
    """Every run of a study with its resolved recipe. RequestError names the row whose recipe is wrong."""
    found: list[Contender] = []
    for row in study.rows:
        for point in _points(row):
            for seed in study.seeds or (None,):
                words = [f"{key.rpartition('.')[2]}={value}" for key, value in point.items()]
                words += [f"seed={seed}"] if seed is not None else []
                label = f"{row.label} ({', '.join(words)})" if words else row.label
                try:
                    recipe = load_recipe(row.recipe, [_override(*item) for item in (row.overrides | point).items()])
                    budget = study.budget if row.budgeted else None
                    recipe = _seeded(_within(recipe, budget, [(study.path / c.slug, c.recipe) for c in found]), seed)
                    if row.peer is not None:
                        peers.check(peers.find(row.peer), recipe)
                except RequestError as error:
                    raise RequestError(f"Row {label!r}: {error.message}", hint=error.hint) from None
                slug = slug_of(label)
                found.append(Contender(label, slug, recipe.model_copy(update={"name": slug}), row))
    slugs = [contender.slug.lower() for contender in found]
    for contender in found:
        if slugs.count(contender.slug.lower()) > 1:
            raise RequestError(f"Two rows would be called {contender.label!r}; labels must differ in more than case.")
    return found


def slug_of(label: str) -> str:
    """A folder's name for a label: the label itself where it can be one, else its letters and a hash."""
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip("-._")[:60]
    recipe_name = plain.replace("=", "").strip("-._")
    if recipe_name == label and label.lower() not in RESERVED:
        return label
    return f"{recipe_name or 'row'}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def _points(row: Row) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*row.grid.values()):
        yield dict(zip(row.grid, values, strict=True))


def _override(key: str, value: Any) -> str:
    """An override as the command line writes it; JSON is YAML, and quoted text stays text."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def starts_from(recipe: Recipe, folder: Path) -> bool:
    """Whether a recipe's model lies in the folder of another run."""
    path = recipe.model.path
    return path is not None and Path(path).resolve().is_relative_to(folder.resolve())


def reads(recipe: Recipe, folder: Path) -> bool:
    """Whether a recipe needs a model from the folder of another run: it starts from it, or has it draft."""
    draft = decode_shape(recipe, "cpu").draft
    return starts_from(recipe, folder) or (draft is not None and Path(draft).resolve().is_relative_to(folder.resolve()))


def _within(recipe: Recipe, budget: Budget | None, earlier: Sequence[tuple[Path, Recipe]]) -> Recipe:
    """The recipe with its training lengthened or shortened to a budget of tokens or FLOPs.

    Several training steps share the budget in proportion to what they would spend by themselves. `earlier` are the
    rows, by folder, that this one may start from.
    """
    lengths = [_own_tokens(step.train) for step in recipe.steps if isinstance(step, TrainStep)]
    if budget is None or not lengths:
        return recipe
    if budget.tokens is not None:
        shares = iter([max(1, budget.tokens * length // sum(lengths)) for length in lengths])
    elif budget.flops is not None:
        prices = flops_per_token(_from_the_start(recipe, earlier))[-len(lengths) :]
        scale = budget.flops / sum(length * price for length, price in zip(lengths, prices, strict=True))
        shares = iter([max(1, int(scale * length)) for length in lengths])
    else:
        return recipe
    return _with_train(recipe, lambda train: train.model_copy(update={"tokens": next(shares), "steps": None}))


def _from_the_start(recipe: Recipe, earlier: Sequence[tuple[Path, Recipe]]) -> Recipe:
    """The recipe with what made its model put before it, so that the model's shape is known before it is there."""
    for folder, base in earlier:
        if starts_from(recipe, folder):
            whole = _from_the_start(base, earlier)
            kept = [
                step
                for step in whole.steps
                if isinstance(step, ApplyStep) and not (base.saving.merge and method_of(step.apply).adds_adapter)
            ]
            model = whole.model.model_copy(update={"task": recipe.model.task})
            return recipe.model_copy(update={"model": model, "steps": (*kept, *recipe.steps)})
    return recipe


def _own_tokens(train: Train) -> int:
    return train.total_steps * train.batch_size * train.sequence_length


def _seeded(recipe: Recipe, seed: int | None) -> Recipe:
    if seed is None:
        return recipe
    seeded = _with_train(recipe, lambda train: train.model_copy(update={"seed": seed}))
    return seeded.model_copy(update={"seed": seed})


def _with_train(recipe: Recipe, change: Any) -> Recipe:
    steps = [TrainStep(train=change(step.train)) if isinstance(step, TrainStep) else step for step in recipe.steps]
    return recipe.model_copy(update={"steps": tuple(steps)})
