"""What a recipe will cost, before it runs: the ledger after every step, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hayless.core.compose import predict as rewrite
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError
from hayless.core.families import dims_of, ledger_of, read_config
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.registry import find, method_of
from hayless.recipe.schema import ModelSection, Recipe, Save, SaveStep, TokenizerSection


@dataclass(frozen=True, slots=True)
class Prediction:
    """The ledger of the finished model in memory, the one of the saved file, and figures by measurement name."""

    ledger: Ledger
    saved: Ledger
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data: figures, and each role's elements and bytes."""
        roles = {
            role: {"elements": count, "held_bytes": held} for role, (count, held, _) in by_role(self.ledger).items()
        }
        return {"figures": self.figures, "methods": list(self.ledger.methods), "roles": roles}


def predict(recipe: Recipe) -> Prediction:
    """Predict a recipe. RequestError where its model's shape cannot be known yet."""
    dims, before = starting_point(recipe.model)
    transforms = [*before, *recipe.transforms]
    ledger = rewrite(ledger_of(dims), transforms)
    saved = saved_ledger(dims, transforms, last_save(recipe))
    figures: dict[str, float] = {
        "parameters": saved.parameters,
        "trainable_parameters": ledger.trainable,
        "nonzero_parameters": saved.nonzero,
        "file_bytes": shipped_bytes(saved),
    }
    return Prediction(ledger, saved, figures)


def last_save(recipe: Recipe) -> Save:
    """How the model is written in the end; the defaults where no step says it."""
    saves = [step.save for step in recipe.steps if isinstance(step, SaveStep)]
    return saves[-1] if saves else Save()


def saved_ledger(dims: ModelDims, transforms: Iterable[MethodConfig], save: Save) -> Ledger:
    """The ledger of what a save step writes: adapters merged and dtype changed if it asks for that."""
    kept = [config for config in transforms if not (save.merge and method_of(config).peft_type)]
    return rewrite(ledger_of(dims.with_dtype(save.dtype) if save.dtype else dims), kept)


def shipped_bytes(ledger: Ledger) -> int:
    """Bytes of safetensors a save writes: the adapter alone where there is one, else the model."""
    files = ledger.files()
    return files.get("adapter", files.get("model", 0))


def starting_point(section: ModelSection) -> tuple[ModelDims, list[MethodConfig]]:
    """Dims of the model a recipe starts from, and the transforms it has had already."""
    if section.config is not None:
        config = complete_config(section)
        dims = replace(dims_of(config), dtype=section.dtype or "float32")
        return dims, []
    assert section.path is not None
    folder = Path(section.path)
    if (folder / "adapter_config.json").is_file():
        raise RequestError(
            f"{folder} is an adapter; a recipe starts from a whole model.",
            hint="Start from its base and apply the method again, or merge it first: save with merge: true.",
        )
    config = read_config(folder)
    noted = config.get("hayless", {}).get("methods", [])
    before = [find(entry["method"]).config.model_validate(entry) for entry in noted]
    dims = dims_of(config)
    return dims.with_dtype(section.dtype) if section.dtype else dims, before


def complete_config(section: ModelSection) -> dict[str, Any]:
    """The config of a new model, its vocabulary filled in from the tokenizer where it is silent."""
    assert section.config is not None
    config = dict(section.config)
    if "vocab_size" not in config:
        config["vocab_size"] = _vocabulary(section.tokenizer)
    return config


def _vocabulary(tokenizer: str | TokenizerSection | None) -> int:
    if isinstance(tokenizer, TokenizerSection):
        return tokenizer.vocab_size
    path = Path(str(tokenizer)) / "tokenizer.json"
    if not path.is_file():
        raise RequestError(f"There is no {path}.", hint="Give model.config.vocab_size, or a tokenizer folder.")
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(path)).get_vocab_size())


def by_role(ledger: Ledger) -> dict[str, tuple[int, int, int]]:
    """Role → (elements, bytes held, trainable elements), in the order of the rows."""
    found: dict[str, tuple[int, int, int]] = {}
    for row in ledger.rows:
        elements, held, trainable = found.get(row.role.value, (0, 0, 0))
        trained = row.elements if row.trainable else 0
        found[row.role.value] = (elements + row.elements, held + row.bytes, trainable + trained)
    return found


def ledger_table(ledger: Ledger) -> Any:
    """A rich table of elements, bytes and trainable elements by role."""
    from rich.table import Table

    from hayless.core.units import format_bytes, format_count

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("role")
    for title in ("elements", "in memory", "trainable"):
        table.add_column(title, justify="right")
    for role, (elements, held, trainable) in by_role(ledger).items():
        table.add_row(role, format_count(elements), format_bytes(held), format_count(trainable))
    total = (format_count(ledger.parameters), format_bytes(ledger.weight_bytes), format_count(ledger.trainable))
    table.add_row("all", *total, style="bold")
    return table
