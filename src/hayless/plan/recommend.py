"""Which ways to train a model fit into a memory, how fast they are, and the first of them as a recipe.

Ways are ordered by what they give up: all weights are trained before branches are, and branches beside whole weights
before branches beside packed ones; float32 masters before updates in 16 bits. Within a way the fastest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hayless.core.cost import TrainShape
from hayless.core.devices import Device
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import configure, method_of
from hayless.core.units import format_bytes
from hayless.plan.memory import Plan, needed, spent, variant
from hayless.plan.presets import config_of
from hayless.plan.table import whole

WAYS = ("full", "lora", "kmeans+lora")
PRECISIONS = ("master", "bf16")
_GIVES_UP = {
    "full": "",
    "lora": "all but a branch stays as it is",
    "kmeans+lora": "all but a branch stays as it is, in 4 bits",
    "master": "",
    "bf16": "small updates are rounded away",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to train within a memory, at the micro-batch that is planned for it."""

    way: str
    precision: str
    checkpointing: bool
    micro_batch: int
    accumulation: int
    plan: Plan

    @property
    def needed_bytes(self) -> int:
        """Bytes at the peak, allowances included."""
        assert self.plan.train
        return needed(self.plan.train.peak)["total"]

    @property
    def gives_up(self) -> str:
        """What this way gives up, in words."""
        return "; ".join(filter(None, (_GIVES_UP[self.way], _GIVES_UP[self.precision])))

    @property
    def name(self) -> str:
        """`lora, bf16, checkpointing`."""
        return ", ".join([self.way, self.precision, *(["checkpointing"] if self.checkpointing else [])])

    def to_json(self, tokens: int) -> dict[str, Any]:
        """Plain data with units in its names."""
        memory = self.plan.device.memory_bytes
        return {
            "way": self.way,
            "gives_up": self.gives_up,
            "precision": self.precision,
            "checkpointing": self.checkpointing,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "needed_bytes": self.needed_bytes,
            "left_bytes": memory - self.needed_bytes,
            "fits": self.needed_bytes <= memory,
            "tokens_per_second": self.plan.train_tokens_per_second(),
            **spent(self.plan, tokens),
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """`fitting` ways, best first, and `others`: those that do not fit even with one row at once."""

    fitting: tuple[Choice, ...]
    others: tuple[Choice, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "fitting": [choice.to_json(self.tokens) for choice in self.fitting],
            "others": [choice.to_json(self.tokens) for choice in self.others],
        }


def advise(
    dims: ModelDims, before: Sequence[MethodConfig], on: Device, *, batch: int, sequence: int, tokens: int
) -> Advice:
    """Ways to train on `tokens` tokens, `batch` rows an update, in the memory of `on`.

    RequestError where none fits, with the least that would be needed.
    """
    whole("batch", batch)
    whole("data_tokens", tokens)
    fitting, others = [], []
    for way in WAYS:
        for precision in PRECISIONS:
            found = [_largest(dims, before, on, way, precision, again, batch, sequence) for again in (False, True)]
            fits = [choice for choice in found if choice.needed_bytes <= on.memory_bytes]
            if fits:
                fitting.append(max(fits, key=lambda choice: choice.plan.train_tokens_per_second() or 0.0))
            others += [choice for choice in found if choice not in fits]
    if not fitting:
        least = min(others, key=lambda choice: choice.needed_bytes)
        raise RequestError(
            f"Nothing trains this model in {format_bytes(on.memory_bytes)}: the least, {least.name} with one row of "
            f"{sequence:,} tokens, needs {format_bytes(least.needed_bytes)}.",
            hint=f"Give {format_bytes(least.needed_bytes)} or more, a shorter sequence, or a smaller model.",
        )
    return Advice(tuple(fitting), tuple(others), tokens)


def recipe(choice: Choice, model: str, preset: str, data: str, sequence: int, tokens: int) -> dict[str, Any]:
    """A choice as the content of a recipe."""
    config = config_of(preset) if preset else {}
    start = (
        {"config": config, "tokenizer": "path/to/tokenizer", "dtype": config["dtype"]} if preset else {"path": model}
    )
    memory = {"memory": ["checkpointing"]} if choice.checkpointing else {}
    train = {
        "tokens": tokens,
        "batch_size": choice.micro_batch * choice.accumulation,
        "micro_batch_size": choice.micro_batch,
        "sequence_length": sequence,
        "precision": choice.precision,
        "optimizer": {"method": "adamw"},
        **memory,
    }
    transforms = [] if choice.way == "full" else [{"apply": {"method": name}} for name in choice.way.split("+")]
    return {
        "name": "planned",
        "model": start,
        "data": {"sources": [{"path": data}]},
        "steps": [*transforms, {"train": train}],
        "device": "cuda",
    }


def _largest(
    dims: ModelDims,
    before: Sequence[MethodConfig],
    on: Device,
    way: str,
    precision: str,
    checkpointing: bool,
    batch: int,
    sequence: int,
) -> Choice:
    """A way at the fewest micro-batches that fit and still make up `batch`; at one row where not even that fits."""

    def at(micro: int) -> Choice:
        accumulation = -(-batch // micro)
        shape = TrainShape(
            micro, sequence, accumulation=accumulation, precision=precision, checkpoint_every=int(checkpointing)
        )
        objective = configure("lm")
        shape = method_of(objective).predict_training(shape, objective)
        plan = variant(way, dims, before, shape, on, decode=False)
        return Choice(way, precision, checkpointing, micro, accumulation, plan)

    return _fewest(at, batch, on.memory_bytes)


def _fewest(at: Callable[[int], Choice], batch: int, memory: int) -> Choice:
    """Bisection over the number of micro-batches: more of them are smaller, and need less."""
    found = at(batch)
    if found.needed_bytes <= memory:
        return found
    one = at(1)
    if one.needed_bytes > memory:
        return one
    found, few, many = one, 1, batch
    while many - few > 1:
        middle = (few + many) // 2
        tried = at(-(-batch // middle))
        if tried.needed_bytes <= memory:
            found, many = tried, middle
        else:
            few = middle
    return found


def budgeted(on: Device, memory_bytes: int) -> Device:
    """A device of the same speed with so much memory."""
    return replace(on, memory_bytes=whole("memory", memory_bytes))
