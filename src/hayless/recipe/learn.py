"""One training step of a recipe: from its data to a trained model, and what that took."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from transformers import PreTrainedModel

from hayless.core import atomic
from hayless.core.errors import FileDamaged, HaylessError, bad_value
from hayless.core.measurement import Measurement
from hayless.core.registry import method_of
from hayless.core.units import format_bytes
from hayless.data.batches import Batch, Batches, one_pass
from hayless.data.check import LEFT_OUT, problems, refuse
from hayless.data.corpus import Kind
from hayless.measure.memory import MemoryMeter
from hayless.model.anatomy import dims_of_model
from hayless.model.build import build_model
from hayless.model.vocabulary import training_alone
from hayless.recipe.schema import Train
from hayless.recipe.start import Start
from hayless.train.trainer import Trainer, TrainResult


class TrainFigures(BaseModel):
    """What a finished training step took. `peak_bytes` is above what was held before the model; None where it cannot
    be read. `note` says how memory was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    tokens: int
    trained_tokens: int
    padded_tokens: int
    seconds: float
    loss: float
    best_loss: float | None
    stopped: Literal["finished", "patience"]
    trainable_parameters: int
    peak_bytes: int | None
    note: str


def learn(
    model: PreTrainedModel,
    train: Train,
    start: Start,
    folder: Path,
    *,
    meter: MemoryMeter | None,
    predicted_bytes: int | None,
    console: Console,
) -> TrainFigures:
    """Train `model` in place; `folder` keeps checkpoints, metrics and the figures of a step that is finished."""
    limit = dims_of_model(model).max_positions
    if limit and train.sequence_length > limit:
        raise bad_value("sequence_length", train.sequence_length, allowed=f"at most {limit}, the model's own limit")
    _check_data(model, train, start, console)
    if start.added and not train.only and not model.get_input_embeddings().weight.requires_grad:
        console.print("The rows of new tokens stay as they are: the embedding is frozen in this step.")
    with training_alone(model, start.added) if train.only and start.added else contextlib.nullcontext():
        trainer = _trainer(model, train, start, folder, predicted_bytes, console)
        if meter is not None:
            meter.restart()
        result = trainer.run()
        finished = folder / "result.json"
        if finished.exists():
            # It was finished before; its weights came from the checkpoint just now, and training took no memory.
            return _read(finished)
        figures = _figures(result, model, meter)
    atomic.write_json(finished, figures.model_dump(mode="json"))
    return figures


def data_kind(train: Train) -> Kind:
    """The kind of data that a training step's objective learns from."""
    kind: Kind = method_of(train.objective).load().kind
    return kind


def rehearse(train: Train, start: Start) -> None:
    """Train a toy for a step, validation, samples and saving included, so that what libraries set up on first use is
    not taken for the model's memory."""
    toy, settings = toy_and_settings(train, start)
    with tempfile.TemporaryDirectory(prefix="hayless-") as folder, contextlib.suppress(HaylessError):
        # What is wrong with the data shows, and is said, in the real run.
        _trainer(toy, settings, start, Path(folder), None, Console(file=io.StringIO())).run()


def toy_and_settings(train: Train, start: Start) -> tuple[PreTrainedModel, Train]:
    """A tiny model for the recipe's data, and a step of its training: small, but with the same parts."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "llama", **shape, "vocab_size": len(start.tokenizer), "max_position_embeddings": 32}
    toy = build_model(config, device=start.device, task=start.recipe.model.task)
    short = {"steps": 1, "tokens": None, "batch_size": 1, "micro_batch_size": None, "sequence_length": 16}
    sparing = {"validation_tokens": 16, "sample_tokens": 1, "compile": False, "tensorboard": False, "patience": 0}
    return toy, train.model_copy(update=short | sparing)


def _check_data(model: PreTrainedModel, train: Train, start: Start, console: Console) -> None:
    """Say what is wrong with the data, and refuse to train on what would be lost without a word."""
    assert start.recipe.data is not None, "the schema asks for data where a step trains"
    found = problems(
        start.data(data_kind(train)),
        start.tokenizer,
        sequence_length=train.sequence_length,
        allow=(*LEFT_OUT, *start.recipe.data.allow),
        embeddings=dims_of_model(model).vocab_size,
        new_tokens=start.added.numbers if start.added else None,
    )
    refuse(found)
    for problem in found:
        if problem.name not in LEFT_OUT:
            console.print(f"allowed: {problem}", markup=False, highlight=False, soft_wrap=True)


def training_batches(train: Train, start: Start) -> Batches:
    """The batches of a training step."""
    assert start.recipe.data is not None, "the schema asks for data where a step trains"
    return Batches(
        start.data(data_kind(train)).train,
        sequence_length=train.sequence_length,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        seed=train.seed,
        proportions=start.recipe.data.proportions or None,
    )


def held_out_batches(train: Train, start: Start) -> list[Batch]:
    """The batches that a training step is validated on."""
    found = one_pass(
        start.data(data_kind(train)).heldout,
        sequence_length=train.sequence_length,
        rows=train.micro_batch_size or train.batch_size,
        max_tokens=train.validation_tokens,
    )
    return list(found)


def _trainer(
    model: PreTrainedModel, train: Train, start: Start, folder: Path, predicted_bytes: int | None, console: Console
) -> Trainer:
    batches = training_batches(train, start)
    if batches.truncated or batches.skipped:
        console.print(f"training data: {batches.description}", markup=False, highlight=False)
    return Trainer(
        model,
        start.tokenizer,
        train,
        objective=train.objective,
        optimizer=train.optimizer,
        memory=train.memory,
        batches=batches,
        validation=held_out_batches(train, start),
        folder=folder,
        predicted_bytes=predicted_bytes,
        console=console,
    )


def training_rows(
    trained: Sequence[TrainFigures], included: str = "validation, samples and checkpoints included"
) -> list[Measurement]:
    """What all training steps of a run took together: time and tokens in all, the largest peak. `included` says what
    the time is of."""
    if not trained:
        return []
    seconds, tokens = sum(step.seconds for step in trained), sum(step.tokens for step in trained)
    peaks = [step.peak_bytes for step in trained if step.peak_bytes is not None]
    note = f"{tokens:,} tokens; {included}"
    rows = [
        Measurement(name="train_seconds", unit="s", value=seconds, note=note, better="lower"),
        Measurement(
            name="train_tokens_per_second", unit="tokens/s", value=tokens / seconds, note=note, better="higher"
        ),
        Measurement(name="trainable_parameters", unit="parameters", value=trained[-1].trainable_parameters),
    ]
    if len(peaks) == len(trained):
        rows.append(
            Measurement(name="train_peak_bytes", unit="B", value=max(peaks), note=trained[-1].note, better="lower")
        )
    return rows


def _figures(result: TrainResult, model: PreTrainedModel, meter: MemoryMeter | None) -> TrainFigures:
    memory = meter.read() if meter is not None else None
    return TrainFigures(
        steps=result.steps,
        tokens=result.tokens,
        trained_tokens=result.trained_tokens,
        padded_tokens=result.padded_tokens,
        seconds=result.seconds,
        loss=result.loss,
        best_loss=result.best_loss,
        stopped=result.stopped,
        trainable_parameters=sum(item.numel() for item in model.parameters() if item.requires_grad),
        peak_bytes=memory.model_bytes if memory else None,
        note=f"{memory.note}; {format_bytes(memory.baseline_bytes)} were held before the model" if memory else "",
    )


def _read(path: Path) -> TrainFigures:
    try:
        return TrainFigures.model_validate(atomic.read_json(path))
    except ValidationError as error:
        raise FileDamaged(f"{path} is no result of training.", hint="Start over with --fresh.") from error
