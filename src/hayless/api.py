"""The Python API: the objects that recipes and the command line are made of.

import hayless

model = hayless.load("runs/demo/target/model")
hayless.apply(model, hayless.method("kmeans", bits=4))
hayless.save(model, "small")
model, changes = hayless.load_and_pack("path/to/a/large/model", [hayless.method("nf4")], device="cuda")

done = hayless.run("recipes/pretrain-small.yaml")
results = hayless.compare("recipes/bits.yaml")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import configure as method
from hayless.model.load import load_model as load
from hayless.model.load import load_tokenizer
from hayless.model.save import save_model as save
from hayless.model.streaming import load_and_pack
from hayless.model.transform import Change, Context
from hayless.model.transform import apply as _apply
from hayless.recipe.execute import Run
from hayless.recipe.execute import run as _run
from hayless.recipe.load import load as load_recipe
from hayless.recipe.schema import Recipe
from hayless.study.results import Results
from hayless.study.runner import run as _compare
from hayless.study.schema import Study
from hayless.study.schema import load as load_study

__all__ = ["apply", "compare", "load", "load_and_pack", "load_tokenizer", "method", "run", "save"]


def apply(model: PreTrainedModel, *methods: MethodConfig | str, context: Context | None = None) -> list[Change]:
    """Apply methods to `model` in place, in the order in which they must be; a bare name means its defaults.

    Raises RequestError before anything is changed where they exclude each other.
    """
    return _apply(model, [method(each) if isinstance(each, str) else each for each in methods], context)


def run(
    wanted: Recipe | Mapping[str, Any] | Path | str,
    folder: Path | str | None = None,
    *,
    overrides: Iterable[str] = (),
    fresh: bool = False,
    console: Console | None = None,
) -> Run:
    """Run a recipe: an object, a mapping or a YAML file, with `key=value` overrides where it is one of the last two.

    See `hayless.recipe.execute.run`.
    """
    changes = list(overrides)
    if isinstance(wanted, Recipe):
        if changes:
            raise RequestError(
                "Overrides are for files and mappings, not for a Recipe.", hint="Use model_copy(update=…)."
            )
        return _run(wanted, folder, fresh=fresh, console=console)
    return _run(load_recipe(wanted, changes), folder, fresh=fresh, console=console)


def compare(
    wanted: Study | Mapping[str, Any] | Path | str, *, fresh: bool = False, console: Console | None = None
) -> Results:
    """Run a study: an object, a mapping or a YAML file. See `hayless.study.runner.run`."""
    return _compare(wanted if isinstance(wanted, Study) else load_study(wanted), fresh=fresh, console=console)
