"""What a recipe will cost, before it runs: the ledger after every step, and the figures that follow from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hayless.core.compose import predict as rewrite
from hayless.core.compose import unmergeable
from hayless.core.cost import DecodeShape, TrainShape, is_packed, training_cost
from hayless.core.decoding import decode_peak
from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import dims_of, labels_of, ledger_of, read_config
from hayless.core.flops import backward_flops, forward_flops
from hayless.core.foreign import record_in
from hayless.core.ledger import Ledger
from hayless.core.method import Aspect, MethodConfig
from hayless.core.new_rows import only_new_rows, vocabulary_rows
from hayless.core.registry import method_of
from hayless.core.roles import Role
from hayless.model.new_tokens import extend
from hayless.recipe.schema import ApplyStep, Measure, ModelSection, Recipe, Save, TokenizerSection, Train, TrainStep

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DeviceKind = Literal["cuda", "cpu"]

NEW_TOKENS = ("model.new_tokens.tokens", "model.new_tokens.special")
"""What a recipe calls new tokens."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The ledger of the finished model in memory, the one that the last training step meets (that of the finished model
    where nothing trains), the one of the saved file, and figures by measurement name."""

    ledger: Ledger
    training: Ledger
    saved: Ledger
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data: figures, and each role's elements and bytes."""
        roles = {role: {"elements": count, "held_bytes": held} for role, (count, held) in by_role(self.ledger).items()}
        return {"figures": self.figures, "methods": list(self.ledger.methods), "roles": roles}


@dataclass(frozen=True, slots=True)
class Stage:
    """A training step of a recipe, by its position, and the model it meets."""

    position: int
    train: Train
    ledger: Ledger


def predict(recipe: Recipe, device: DeviceKind | None = None) -> Prediction:
    """Predict a recipe on a kind of device (by the recipe's own `device` and what is installed, if None).

    RequestError where the model's shape cannot be known, and for a recipe that trains nothing it could train.
    """
    device = device or device_kind(recipe.device)
    stages, dims, done = walk(recipe)
    ledger, saved = rewrite(ledger_of(dims), done), _saved(dims, done, recipe.saving)
    training = stages[-1].ledger if stages else ledger
    files = saved.file_bytes()
    figures: dict[str, float] = {
        "parameters": saved.parameters,
        "trainable_parameters": training.trainable,
        "nonzero_parameters": saved.nonzero,
        "file_bytes": sum(files.values()),
    }
    if "adapter" in files:
        figures["adapter_bytes"] = files["adapter"]
    if stages:
        costs = [training_cost(stage.ledger, train_shape(stage.train, device)) for stage in stages]
        figures["train_peak_bytes"] = max(cost.peak.total for cost in costs)
    measuring = recipe.measuring
    if measuring and measuring.decode and recipe.model.task == "causal" and saved.dims.family not in ("bert", "t5"):
        shape = decode_shape(recipe, device)
        draft = _model_of(shape.draft, saved.dims.dtype) if shape.draft else None
        figures["decode_peak_bytes"] = decode_peak(saved, shape, draft).total
    return Prediction(ledger, training, saved, figures)


def flops_per_token(recipe: Recipe) -> list[float]:
    """FLOPs of a trained token in each training step of a recipe, forward and backward, by its own ledger.

    Blocks that are computed again count; what an objective computes besides the trained model (a teacher, a reference)
    does not. RequestError as in `predict`.
    """
    found = []
    for stage in walk(recipe)[0]:
        shape = train_shape(stage.train, "cpu")
        passes = forward_flops(stage.ledger, shape.batch, shape.sequence) + backward_flops(stage.ledger, shape)
        found.append(passes / (shape.batch * shape.sequence))
    return found


def device_kind(name: str) -> DeviceKind:
    """What a recipe's `device` will most likely be, without asking torch."""
    if name == "auto":
        return "cuda" if shutil.which("nvidia-smi") else "cpu"
    return "cuda" if name.startswith("cuda") else "cpu"


def train_shape(train: Train, device: DeviceKind) -> TrainShape:
    """What a training step costs by, as far as the methods in its slots say."""
    shape = TrainShape(
        batch=train.micro_batch_size or train.batch_size,
        sequence=train.sequence_length,
        accumulation=train.accumulation,
        precision=train.precision,
        clips=train.clip_norm is not None,
        attention=train.attention,
        device=device,
    )
    for config in (train.objective, train.optimizer, *train.memory):
        shape = method_of(config).predict_training(shape, config)
    return shape


def decode_shape(recipe: Recipe, device: DeviceKind) -> DecodeShape:
    """What decoding costs by when the saved model is measured, as far as the methods in its slots say."""
    measuring = recipe.measuring or Measure()
    shape = DecodeShape(1, measuring.prompt_tokens + measuring.decode_tokens, device=device)
    if recipe.decoding is None:
        return shape
    return method_of(recipe.decoding.method).predict_decoding(shape, recipe.decoding.method)


def _model_of(path: str, dtype: str) -> Ledger:
    """The ledger of a saved model that is loaded in a dtype."""
    dims, done = starting_point(ModelSection(path=path))
    return rewrite(ledger_of(dims.with_dtype(dtype)), done)


def walk(recipe: Recipe) -> tuple[list[Stage], ModelDims, list[MethodConfig]]:
    """Every training step with the ledger it meets; in the end, the model's dims and the transforms it has had."""
    dims, done = starting_point(recipe.model)
    stages: list[Stage] = []
    for position, step in enumerate(recipe.steps):
        if isinstance(step, ApplyStep):
            done = [*done, step.apply]
        elif isinstance(step, TrainStep):
            ledger = rewrite(ledger_of(dims), done)
            if step.train.only:
                ledger = _only_new_rows(recipe.model, ledger, f"steps.{position}.train.only")
            stages.append(Stage(position, step.train, ledger))
            dims = dims.with_dtype(_dtype_after(ledger, step.train))
    return stages, dims, done


def _only_new_rows(section: ModelSection, ledger: Ledger, field: str) -> Ledger:
    """The ledger while the rows of new tokens train alone. RequestError where that would freeze a head that is new."""
    assert section.new_tokens is not None, "the schema asks for new tokens where only they train"
    found = section.config or _config_of(str(section.path), section.revision)
    if section.task == "reward" and not labels_of(found):
        raise RequestError(
            f"{field} = 'new_tokens' would leave the score head, which is new, as random as it is.",
            hint="Start from a reward model that is trained, or train everything.",
        )
    return only_new_rows(ledger, len(section.new_tokens.all))


def _dtype_after(ledger: Ledger, train: Train) -> str:
    """The dtype of the model's own weights after a training step, which casts them to its precision."""
    shape = train_shape(train, "cpu")
    found = {shape.dtype(row) for row in ledger.rows if row.role is not Role.ADAPTER and not is_packed(row)}
    return found.pop() if len(found) == 1 else ledger.dims.dtype


def _saved(dims: ModelDims, done: Sequence[MethodConfig], save: Save) -> Ledger:
    """The ledger of what is written: adapters merged and dtype changed if the recipe asks for that.

    NotSupported for adapters that never can be merged."""
    for config in done if save.merge else ():
        if method_of(config).unmerged:
            raise unmergeable(config)
    kept = [config for config in done if not (save.merge and method_of(config).adds_adapter)]
    if save.merge is True:
        _check_mergeable(done)
    elif save.merge == "dequantize":
        kept = [config for config in kept if not _claimed(config, Aspect.STORAGE)]
    return rewrite(ledger_of(dims.with_dtype(save.dtype) if save.dtype else dims), kept)


def _check_mergeable(done: Iterable[MethodConfig]) -> None:
    """RequestError for adapters beside packed weights, before anything is trained that could not be merged."""
    methods = list(done)
    for adapter in (config for config in methods if method_of(config).adds_adapter):
        for config in methods:
            shared = _claimed(config, Aspect.STORAGE) & _claimed(adapter, Aspect.BRANCH)
            if shared:
                raise RequestError(
                    f"save.merge = true cannot fold {adapter.method} into what {config.method} packed"
                    f" ({', '.join(sorted(shared))}).",
                    hint="Say merge: requantize (packed again, with a new error) or merge: dequantize (an ordinary"
                    " model), or leave merge out.",
                )


def _claimed(config: MethodConfig, aspect: Aspect) -> frozenset[Role]:
    """The roles of which a transform changes this aspect."""
    claims = method_of(config).claims(config)
    return frozenset(role for claim in claims if claim.aspect is aspect for role in claim.roles)


def starting_point(section: ModelSection) -> tuple[ModelDims, list[MethodConfig]]:
    """Dims of the model a recipe starts from, and the transforms it has had already."""
    before: list[MethodConfig] = []
    if section.config is not None:
        dims = replace(dims_of(complete_config(section)), dtype=section.dtype or "float32")
    else:
        assert section.path is not None
        found = _config_of(section.path, section.revision)
        before = record_in(Path(section.path), found)
        dims = dims_of(found)
        dims = dims.with_dtype(section.dtype) if section.dtype else dims
    dims = replace(dims, labels=1) if section.task == "reward" else dims
    return replace(dims, vocab_size=_grown_vocabulary(section, rewrite(ledger_of(dims), before))), before


def _grown_vocabulary(section: ModelSection, ledger: Ledger) -> int:
    """Rows of the embedding once new tokens have theirs."""
    rows = ledger.dims.vocab_size
    if section.new_tokens is None:
        return rows
    vocabulary_rows(ledger)
    if isinstance(section.tokenizer, TokenizerSection):
        return max(rows, section.tokenizer.vocab_size)
    return max(rows, extend(_tokenizer(section), section.new_tokens, names=NEW_TOKENS).end)


def _config_of(path: str, revision: str | None) -> dict[str, Any]:
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        raise NotSupported(
            f"{folder} is an adapter; a recipe starts from a whole model.",
            hint="Start from its base and apply the method again, or merge it first: save with merge: true.",
        )
    if folder.is_dir():
        return read_config(folder)
    from hayless.model.source import fetch_config

    return fetch_config(path, revision)


def complete_config(section: ModelSection) -> dict[str, Any]:
    """The config of a new model, its vocabulary filled in from the tokenizer where it is silent."""
    assert section.config is not None
    config = dict(section.config)
    if "vocab_size" not in config:
        trained = section.tokenizer if isinstance(section.tokenizer, TokenizerSection) else None
        config["vocab_size"] = trained.vocab_size if trained else _tokenizer(section).get_vocab_size()
    return config


def _tokenizer(section: ModelSection) -> Tokenizer:
    """The tokenizer that a recipe names, or its model's own, before new tokens."""
    from hayless.model.source import fetch_tokenizer

    if section.tokenizer is None:
        return fetch_tokenizer(str(section.path), section.revision)
    return fetch_tokenizer(str(section.tokenizer))


def by_role(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Role → (elements, bytes held), in the order of the rows."""
    found: dict[str, tuple[int, int]] = {}
    for row in ledger.rows:
        elements, held = found.get(row.role.value, (0, 0))
        found[row.role.value] = (elements + row.elements, held + row.bytes)
    return found


def ledger_table(prediction: Prediction) -> Any:
    """A rich table by role: elements and bytes of the finished model, and what its last training step trains."""
    from rich.table import Table

    from hayless.core.units import format_bytes, format_count

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("role")
    for title in ("elements", "in memory", "trainable"):
        table.add_column(title, justify="right")
    rows, ledger = prediction.training.rows, prediction.ledger
    for role, (elements, held) in by_role(ledger).items():
        trainable = sum(row.elements for row in rows if row.trainable and row.role.value == role)
        table.add_row(role, format_count(elements), format_bytes(held), format_count(trainable))
    total = (ledger.parameters, ledger.weight_bytes, prediction.training.trainable)
    table.add_row("all", format_count(total[0]), format_bytes(total[1]), format_count(total[2]), style="bold")
    return table
