"""A recipe carried out by transformers.Trainer, with peft's adapters where it applies one.

The Trainer gets the very micro-batches that hayless would compute, in their order, as ready inputs: a packed row keeps
its documents apart, and the loss is the mean over the tokens of a whole update. It steps torch's own optimizer with the
recipe's settings on the recipe's schedule. After training the gate compares what the Trainer stepped on with what it
was to step on.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from hayless.core import atomic
from hayless.core.errors import HaylessError, RequestError, WorkError
from hayless.core.measurement import Measurement
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.data.batches import Batch, Batches
from hayless.measure.memory import MemoryMeter
from hayless.model import adapters
from hayless.model.build import empty_model
from hayless.model.source import local_folder
from hayless.recipe.folder import RunFolder
from hayless.recipe.learn import TrainFigures, held_out_batches, toy_and_settings, training_batches, training_rows
from hayless.recipe.schema import ApplyStep, Train, TrainStep
from hayless.recipe.start import Start
from hayless.study.peers import Peer
from hayless.train.forward import model_inputs
from hayless.train.metrics import MetricsLog
from hayless.train.precision import cast_weights, trainables
from hayless.train.schedule import rate

INCLUDED = "validation included; a peer keeps no checkpoints"


class TrainerPeer:
    """Fills the place of hayless's own work in a run (`hayless.recipe.execute.Maker`)."""

    def __init__(self, peer: Peer) -> None:
        self.key: str = peer.name
        self.name = " and ".join(
            f"{package} {version(package)}" for package in peer.packages if package != "accelerate"
        )

    def make(self, start: Start, place: RunFolder, console: Console) -> list[Measurement]:
        """Train the recipe's model and save it to `place.model`; what that took."""
        if torch.cuda.device_count() > 1 and start.device.type == "cuda":
            raise RequestError(
                "transformers.Trainer would take every GPU that it sees.",
                hint="Set CUDA_VISIBLE_DEVICES to one of them.",
            )
        steps = list(start.recipe.steps)
        # A toy first, so that what libraries load on first use is not taken for the model's memory.
        with tempfile.TemporaryDirectory(prefix="hayless-") as folder, contextlib.suppress(HaylessError):
            toy, settings = toy_and_settings(next(step.train for step in steps if isinstance(step, TrainStep)), start)
            train_by_trainer(toy, settings, start, Path(folder), None, Console(file=io.StringIO()))
        meter = MemoryMeter(start.device)
        model: Any = start.model()
        trained = []
        for position, step in enumerate(steps):
            if isinstance(step, ApplyStep):
                model = _with_adapter(model, step.apply)
            elif isinstance(step, TrainStep):
                meter.restart()
                trained.append(train_by_trainer(model, step.train, start, place.training(position), meter, console))
        if start.recipe.saving.merge:
            model = model.merge_and_unload()
        shutil.rmtree(place.model, ignore_errors=True)
        model.save_pretrained(place.model)
        if (place.model / adapters.CONFIG).exists():
            # As where hayless saves an adapter, the base stands beside it.
            config = atomic.read_json(place.model / adapters.CONFIG)
            atomic.write_json(place.model / adapters.CONFIG, {**config, "base_model_name_or_path": adapters.BASE})
            base = local_folder(str(start.recipe.model.path), start.recipe.model.revision)
            shutil.copytree(base, place.model / adapters.BASE, ignore=shutil.ignore_patterns("README.md", "receipt.*"))
            (place.model / "README.md").unlink()  # a template of peft's, with nothing filled in
        start.tokenizer.save_pretrained(place.model)
        return training_rows(trained, included=INCLUDED)


def train_by_trainer(
    model: Any, train: Train, start: Start, folder: Path, meter: MemoryMeter | None, console: Console
) -> TrainFigures:
    """Train `model` in place by transformers.Trainer; `folder` gets the metrics. WorkError where it did not step on the
    batches that it was given."""
    batches, held_out = training_batches(train, start), held_out_batches(train, start)
    cast_weights(model, train.precision)
    optimizer = method_of(train.optimizer).load().build(train.optimizer, trainables(model))
    total = train.total_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(train.schedule, min(step, total - 1), total)
    )
    given, log = _Given(model, batches, total), MetricsLog(folder / "metrics.jsonl", after=0)
    trainer = _Recorded(
        model=model,
        args=_arguments(train, start.device, folder),
        train_dataset=given,
        eval_dataset=_HeldOut(model, held_out) if held_out else None,
        data_collator=lambda items: items[0],
        optimizers=(optimizer, schedule),
        callbacks=[_Reports(log, total, console)],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    begun = time.perf_counter()
    mean_loss = trainer.train().training_loss
    if held_out and not (train.validate_every and total % train.validate_every == 0):
        trainer.evaluate()
    seconds = time.perf_counter() - begun
    memory = meter.read() if meter is not None else None
    log.close()
    model.eval()
    counts = given.counted(trainer.seen)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return TrainFigures(
        steps=trainer.state.global_step,
        tokens=counts["input_tokens"],
        trained_tokens=counts["trained_tokens"],
        padded_tokens=counts["padded_tokens"],
        seconds=seconds,
        loss=losses[-1] if losses else mean_loss,
        best_loss=None,
        stopped="finished",
        trainable_parameters=sum(item.numel() for item in model.parameters() if item.requires_grad),
        peak_bytes=memory.model_bytes if memory else None,
        note=memory.note if memory else "",
    )


def _arguments(train: Train, device: torch.device, folder: Path) -> transformers.TrainingArguments:
    checkpointing: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=train.total_steps,
        # An item of the dataset is a whole micro-batch.
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=train.accumulation,
        max_grad_norm=train.clip_norm or 0.0,
        bf16=train.precision == "autocast",
        torch_compile=train.compile,
        eval_strategy="steps" if train.validate_every else "no",
        eval_steps=train.validate_every or None,
        prediction_loss_only=True,
        label_names=["labels"],
        logging_steps=train.log_every,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        seed=train.seed,
        **(checkpointing if train.memory else {}),
    )


class _Given(Dataset[dict[str, Any]]):
    """Every micro-batch of a training run in its order, as a model is called with it."""

    def __init__(self, model: Any, batches: Batches, steps: int) -> None:
        self._model, self._batches, self._steps = model, batches, steps

    def __len__(self) -> int:
        return self._steps * self._batches.accumulation

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _inputs(self._model, self.batch(index))

    def batch(self, index: int) -> Batch:
        """The micro-batch that comes as `index`."""
        return self._batches.at(*divmod(index, self._batches.accumulation))

    def counted(self, seen: Sequence[Tensor]) -> dict[str, int]:
        """Tokens of all micro-batches. WorkError unless the Trainer stepped on exactly these, in this order; `seen` has
        a checksum of each that it stepped on."""
        found, wanted = torch.stack(list(seen)).tolist() if seen else [], []
        counts = {"input_tokens": 0, "trained_tokens": 0, "padded_tokens": 0}
        for index in range(len(self)):
            batch = self.batch(index)
            wanted.append(int(_checksum(batch.input_ids)))
            counts = {name: count + getattr(batch, name) for name, count in counts.items()}
        if found != wanted:
            raise WorkError(
                f"transformers.Trainer stepped on {len(found)} micro-batches, which are not the {len(wanted)} of the"
                " recipe in their order; its row would say nothing."
            )
        return counts


class _HeldOut(Dataset[dict[str, Any]]):
    """Held-out batches."""

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _inputs(self._model, self._batches[index])


class _Recorded(transformers.Trainer):
    """The Trainer, as it is, on batches in their order; `seen` has a checksum of each batch that it stepped on."""

    seen: list[Tensor]

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        self.seen = []
        return SequentialSampler(cast(_Given, self.train_dataset))

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        # Kept on the device: reading it would make the host wait.
        self.seen.append(_checksum(inputs["input_ids"]))
        return super().training_step(model, inputs, *rest, **more)


class _Reports(transformers.TrainerCallback):
    """Writes what the Trainer logs where hayless's own runs have it."""

    def __init__(self, log: MetricsLog, total: int, console: Console) -> None:
        self._log, self._total, self._console = log, total, console

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """A line of metrics for each line of the Trainer's log that has a loss."""
        found = logs or {}
        if "loss" in found:
            names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
            fields = {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
            self._log.write("train", state.global_step, fields)
            self._console.print(f"step {state.global_step} of {self._total}: loss {found['loss']:.4g}")
        elif "eval_loss" in found:
            self._log.write("validation", state.global_step, {"loss": found["eval_loss"]})


def _inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """What a batch is to a causal language model of transformers: targets are shifted already."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {**model_inputs(base, batch), "labels": batch.targets, "shift_labels": batch.targets}


def _checksum(ids: Tensor) -> Tensor:
    """A number that token ids, their order and their rows decide."""
    places = torch.arange(1, ids.numel() + 1, device=ids.device)
    return (ids.flatten() * places * places).sum()


def _with_adapter(model: transformers.PreTrainedModel, config: MethodConfig) -> Any:
    """peft's model with the adapter that a method describes, in peft's own words for it."""
    import peft

    part = method_of(config).load()
    toy = empty_model(model.config.to_dict(), model.dtype)
    part.restore(toy, config)
    described = {**part.export(toy, config).config, "inference_mode": False}
    return peft.get_peft_model(model, peft.get_peft_config(described))
