"""The slots of training: what a method must be to fill one. The trainer knows no method by name.

A card's `implementation` names, for an objective, a class that takes the config (`ObjectivePart`); for an optimizer and
a memory method, an object or a class with the methods below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.data.batches import Batch
from hayless.data.corpus import Kind as DataKind


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a batch as a *sum* over its units, so that sums of micro-batches are those of the whole batch.

    `total` is a scalar in nats that gradients flow from; `metrics` are sums over the same units (right answers, say),
    detached, on the model's device.
    """

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """Computes a loss from a batch. It knows nothing of optimizers, devices or files."""

    unit: str
    """What the loss is counted over, in one word: `token`, `pair`."""
    kind: DataKind
    """What it learns from: whole documents (`lm`), outputs of examples (`sft`), pairs of answers (`preference`)."""

    def units(self, batch: Batch) -> int:
        """How many units `loss` sums over, from a batch on the CPU.

        Known before the forward pass, so that gradients are scaled as they are made (an update may be fused into the
        backward pass) and a GPU is not waited for.
        """
        ...

    def loss(self, model: PreTrainedModel, batch: Batch) -> Loss:
        """The loss of `batch`, which lies on the model's device."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """An objective whose loss changes while a model trains, as a function of the update's number alone."""

    def at(self, step: int, steps: int) -> None:
        """Losses are those of update `step` of `steps` from now on; `step` counts from 1."""
        ...


class ObjectivePart(Protocol):
    """Makes an objective from its config."""

    def __call__(self, config: Any) -> Objective: ...


class Kind(StrEnum):
    """What a trained parameter is, as far as optimizers treat them differently."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    """A table of embeddings, also where the head shares it."""
    VECTOR = "vector"
    """A bias or the gain of a norm."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """A tensor the optimizer moves: its name in the model, its kind, and the model's parameter or its fp32 master.

    `rate`: what the learning rate is multiplied by for it.
    """

    name: str
    kind: Kind
    tensor: torch.nn.Parameter
    rate: float = 1.0


class OptimizerPart(Protocol):
    """Builds an optimizer."""

    fused: bool
    """Whether weights are moved during the backward pass: what is built is a `FusedOptimizer` then."""

    def build(self, config: Any, parameters: Sequence[Trainable]) -> torch.optim.Optimizer:
        """An optimizer of `parameters` at the peak learning rate, whose groups say under `rate` by what theirs will be
        multiplied. It may be called several times a run, each time with another share of the parameters, so that what
        it does to one may not depend on the others."""
        ...


class ShrinkingOptimizer(torch.optim.Optimizer):
    """An optimizer that multiplies gradients by `factor` as it reads them: clipping takes no pass of its own."""

    factor = 1.0


class FusedOptimizer(torch.optim.Optimizer):
    """An optimizer that can move its parameters one by one, each as soon as its gradient is there.

    Groups and states are those of any optimizer of torch's; subclasses say what `move` does.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)
        # By place, because loading a state makes the groups anew.
        self._places: dict[Tensor, int] = {
            parameter: place for place, group in enumerate(self.param_groups) for parameter in group["params"]
        }

    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        """Move `parameter`, a leaf, in place. `gradient`, of its shape and dtype, may be written to."""
        raise NotImplementedError

    def group_of(self, parameter: Tensor) -> dict[str, Any]:
        """The options of a parameter, `lr` among them."""
        return self.param_groups[self._places[parameter]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient, as other optimizers do, and leave the gradients as they are."""
        for parameter in self._places:
            if parameter.grad is not None:
                self.move(parameter, parameter.grad.clone())


class MemoryPart(Protocol):
    """Trades time for memory while a model trains."""

    def install(self, model: PreTrainedModel, config: Any) -> AbstractContextManager[None]:
        """In force while the context is open; the model is as before afterwards. NotSupported for a model it cannot
        serve."""
        ...
