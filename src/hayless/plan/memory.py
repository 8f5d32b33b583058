"""What training and running a model will need and take: bytes by cause at each phase's peak, seconds, energy.

Bytes are those of `hayless.core.cost`, which are held against live tensors. Two allowances stand beside them, and are
no predictions: what the CUDA context takes, and what the allocator keeps beyond what is in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hayless.core.compose import compose
from hayless.core.compose import predict as rewrite
from hayless.core.cost import Bytes, Cost, TrainShape, training_cost
from hayless.core.decoding import decode_cost
from hayless.core.devices import Device, step_seconds, token_seconds
from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported, RequestError, bad_value
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig, Part
from hayless.core.registry import configure, method_of
from hayless.plan.presets import PRESETS, config_of

CONTEXT_BYTES = 804_000_000
"""The CUDA context with the kernels of its libraries, beside the allocator's memory. On an H100: 0.55 GB before the
first kernel, 0.80 GB after updates of any model (PyTorch 2.11, CUDA 13; `benchmarks/results/plan.json`)."""
SLACK = 0.05
"""Allowance for what the allocator keeps beyond what is in use, as a share of it. Without a limit it keeps 2 to 29 %;
where memory ends it gives free blocks back before it fails, so that less is needed."""
MARGIN = 0.012
"""The largest share that predicted peaks of training were off on an H100 (`benchmarks/results/plan.json`)."""

VERIFIED = (
    f"Peaks, without context and slack, were at most {MARGIN:.1%} off in 68 trainings on an H100; times were 6% off in"
    " the median of the updates that no share of a device's rates was fitted to."
)
"""What stands beside every plan."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to train a model (or to run it: `train` is None): its ledger, its costs and where they are met.

    `notes` say why a cost is missing.
    """

    name: str
    ledger: Ledger
    device: Device
    train: Cost | None
    decode: Cost | None
    notes: tuple[str, ...] = ()

    @property
    def costs(self) -> dict[str, Cost]:
        """`train` and `decode`, as far as there are costs."""
        return {name: cost for name, cost in (("train", self.train), ("decode", self.decode)) if cost}

    def step_seconds(self) -> float | None:
        """Seconds of an update."""
        return step_seconds(self.train, self.device) if self.train else None

    def train_tokens_per_second(self) -> float | None:
        """Tokens trained a second."""
        seconds = self.step_seconds()
        return self.train.tokens / seconds if self.train and seconds else None

    def token_seconds(self) -> float | None:
        """Seconds of a decoding step."""
        return token_seconds(self.decode, self.device) if self.decode else None

    def to_json(self, data_tokens: int = 0) -> dict[str, Any]:
        """Plain data with units in its names; cost of `data_tokens` trained tokens, if there are any."""
        found: dict[str, Any] = {
            "name": self.name,
            "parameters": self.ledger.parameters,
            "trainable_parameters": self.ledger.trainable,
            "notes": list(dict.fromkeys([*self.notes, *(note for cost in self.costs.values() for note in cost.notes)])),
        }
        for name, cost in self.costs.items():
            phases = {phase: by_cause_in_json(held) for phase, held in cost.phases.items()}
            held = needed(cost.peak)
            found[name] = {
                "phases": phases,
                "peak_phase": cost.peak_phase,
                "peak_bytes": cost.peak.total,
                "needed_bytes": held["total"],
                "left_bytes": self.device.memory_bytes - held["total"],
                "fits": held["total"] <= self.device.memory_bytes,
            }
        if "train" in found:
            found["train"] |= {
                "step_seconds": self.step_seconds(),
                "tokens_per_second": self.train_tokens_per_second(),
                **(spent(self, data_tokens) if data_tokens else {}),
            }
        if "decode" in found:
            seconds = self.token_seconds()
            assert seconds and self.decode
            found["decode"] |= {"ms_per_token": 1e3 * seconds, "tokens_per_second": self.decode.tokens / seconds}
        return found


def by_cause_in_json(held: Bytes) -> dict[str, int]:
    """Cause → bytes with the unit in the name, allowances and the total included."""
    return {f"{cause}_bytes": size for cause, size in needed(held).items()}


def needed(held: Bytes) -> dict[str, int]:
    """Cause → bytes, with both allowances and `total`."""
    slack = round(SLACK * held.total)
    causes = {**held.by_cause(), "context": CONTEXT_BYTES, "slack": slack}
    return {**causes, "total": sum(causes.values())}


def spent(plan: Plan, tokens: int) -> dict[str, float]:
    """GPU-hours and, where the device's power is known, the most kWh that training on `tokens` takes."""
    rate = plan.train_tokens_per_second()
    if not rate:
        raise RequestError(f"{plan.name} trains nothing.")
    hours = tokens / rate / 3600
    watts = plan.device.watts
    return {"tokens": tokens, "gpu_hours": hours, **({"kwh": hours * watts / 1e3} if watts else {})}


def dims_from(model: str, preset: str) -> tuple[ModelDims, list[MethodConfig]]:
    """Dims of a preset, or of a model's folder, config.json or hub id, and the transforms it has had already."""
    if bool(model) == bool(preset):
        raise RequestError("Give a model, or a preset, and not both.", hint="For example: --preset llama-7b.")
    if preset:
        return dims_of(config_of(preset)), []
    from hayless.recipe.prediction import starting_point
    from hayless.recipe.schema import ModelSection

    path = Path(model)
    if model in PRESETS and not path.exists():
        raise RequestError(f"There is no folder {model}.", hint=f"There is a preset of this name: --preset {model}.")
    if path.is_file():
        if path.name != "config.json":
            raise RequestError(f"{path} is no model.", hint="Give a model's folder or its config.json.")
        model = str(path.parent)
    return starting_point(ModelSection(path=model))


def variant(
    name: str, dims: ModelDims, before: Sequence[MethodConfig], shape: TrainShape, on: Device, *, decode: bool = True
) -> Plan:
    """A plan by name: `full`, or methods joined by +, such as `kmeans+lora(rank=16)`, `sgd` or `lora+checkpointing`.

    Transforms change the model, optimizers and memory methods the training; without an optimizer it is AdamW.
    """
    return with_methods(name, methods_named(name), dims, before, shape, on, decode=decode)


_RECIPES = {"qlora": ("nf4", "lora", "paged")}
"""Names of ways to train that stand for several methods (QLoRA, arXiv:2305.14314)."""


def methods_named(name: str) -> list[MethodConfig]:
    """The methods of a way to train; `full` is none, and `qlora` those of its paper."""
    parts = [part.strip() for part in name.split("+")]
    return [_named(method) for part in parts if part != "full" for method in _RECIPES.get(part, (part,))]


def with_methods(
    name: str,
    configs: Sequence[MethodConfig],
    dims: ModelDims,
    before: Sequence[MethodConfig],
    shape: TrainShape,
    on: Device,
    *,
    decode: bool = True,
) -> Plan:
    """A plan of a model that has had the transforms `before`, changed and trained by `configs`; see `variant`."""
    transforms: list[MethodConfig] = []
    slots = [configure("adamw")]
    for config in configs:
        kind = method_of(config).part
        if kind not in (Part.TRANSFORM, Part.OPTIMIZER, Part.MEMORY):
            raise RequestError(
                f"{config.method} is no way to train a model: it is part of {kind.kind}ing, its {kind.value}.",
                hint="Give full, or transforms, optimizers and memory methods joined by +, such as kmeans+lora.",
            )
        (transforms if kind is Part.TRANSFORM else slots).append(config)
    for config in slots:
        shape = method_of(config).predict_training(shape, config)
    return plan(name, rewrite(ledger_of(dims), [*before, *compose(transforms)]), shape, on, decode=decode)


def _named(text: str) -> MethodConfig:
    """`lora` or `lora(rank=16, alpha=32)` as the config it names."""
    name, _, given = text.strip().removesuffix(")").partition("(")
    options = (part.partition("=") for part in given.split(",") if part.strip())
    return configure(name, **{field.strip(): _value(value.strip()) for field, _, value in options})


def _value(text: str) -> str | int:
    """A whole number as one, since options that are some of those do not read text; all else reads it."""
    return int(text) if text.isdigit() else text


def plan(
    name: str, ledger: Ledger, shape: TrainShape | None, on: Device, *, decode: bool = True, timed: bool = True
) -> Plan:
    """The plan of a model as `ledger` has it, trained by `shape` (None: only run); not `timed`, by its memory alone.

    It is run with the batch and sequence it is trained with. RequestError where positions end before the sequence.
    """
    notes = []
    dims = ledger.dims
    if shape and dims.family in ("gpt2", "opt", "bert") and shape.sequence > dims.max_positions:
        raise bad_value("sequence", shape.sequence, allowed=f"up to {dims.max_positions:,}, the model's positions")
    train = run = None
    if shape:
        train = training_cost(ledger, shape, timed=timed)
        if decode:
            try:
                attention: Literal["sdpa", "eager"] = "eager" if shape.attention == "eager" else "sdpa"
                run = decode_cost(ledger, shape.batch, shape.sequence, attention=attention, device=shape.device)
            except NotSupported as error:
                notes.append(error.message)
    return Plan(name, ledger, on, train, run, tuple(notes))


def usual_sequence(dims: ModelDims) -> int:
    """Tokens of a sequence where nobody says otherwise: 2048, or all positions where there are fewer."""
    return min(2048, dims.max_positions or 2048)


def plan_decoding(
    name: str, ledger: Ledger, batch: int, context: int, on: Device, kind: Literal["cuda", "cpu"] = "cuda"
) -> Plan:
    """The plan of a model that is only run: `batch` rows that hold `context` tokens each."""
    return Plan(name, ledger, on, None, decode_cost(ledger, batch, context, device=kind))


def of_recipe(path: str, model: str, preset: str, on: Device, changes: Mapping[str, Any]) -> list[Plan]:
    """A plan for each training step of a recipe, on its own model or another, with `changes` to its TrainShape."""
    from hayless.recipe.load import load
    from hayless.recipe.prediction import train_shape, walk
    from hayless.recipe.schema import ModelSection

    recipe = load(path)
    new_tokens = recipe.model.new_tokens
    if preset and new_tokens is not None:
        raise NotSupported(f"{path} adds new tokens, and a preset has no tokenizer.", hint="Give a model's folder.")
    if preset:
        config = config_of(preset)
        section = ModelSection(config=config, tokenizer=preset, dtype=config["dtype"])
        recipe = recipe.model_copy(update={"model": section})
    elif model:
        recipe = recipe.model_copy(update={"model": ModelSection(path=model, new_tokens=new_tokens)})
    stages, _, _ = walk(recipe)
    if not stages:
        raise RequestError(f"{path} trains nothing.", hint="Give a recipe with a train step, or none.")
    plans = []
    for stage in stages:
        shape = replace(train_shape(stage.train, "cuda"), **changes)
        plans.append(plan(f"{recipe.name}, step {stage.position + 1}", stage.ledger, shape, on))
    return plans
