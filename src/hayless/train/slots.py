"""The slots of training: what a method must be to fill one. The trainer knows no method by name.

A card's `implementation` names, for an objective, a class that takes the config (`ObjectivePart`); for an optimizer and
a memory method, an object or a class with the methods below.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """A tensor the optimizer moves: its name in the model, its kind, and the model's parameter or its fp32 master."""

    name: str
    kind: Kind
    tensor: torch.nn.Parameter


class OptimizerPart(Protocol):
    """Builds an optimizer."""

    def build(self, config: Any, parameters: Sequence[Trainable]) -> torch.optim.Optimizer:
        """An optimizer of `parameters` at the peak learning rate. It may be called several times a run, each time with
        another share of the parameters, so that what it does to one may not depend on the others."""
        ...


class MemoryPart(Protocol):
    """Trades time for memory while a model trains."""

    def install(self, model: PreTrainedModel, config: Any) -> AbstractContextManager[None]:
        """In force while the context is open; the model is as before afterwards. NotSupported for a model it cannot
        serve."""
        ...
