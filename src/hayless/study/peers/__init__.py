"""Peers: other libraries that carry out the same recipe, so that a study has them as rows beside hayless's own.

A peer gets the recipe's model, data, batches, optimizer and schedule, and brings its own training loop (and adapters).
What it saves is measured like any other saved model. What it cannot do as the recipe says, it refuses. No torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hayless.core.errors import RequestError, unknown
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.recipe.schema import ApplyStep, Recipe, Save, Train, TrainStep

if TYPE_CHECKING:
    from rich.console import Console

    from hayless.recipe.execute import Run

PeerName = Literal["transformers", "peft"]

_HONOURED = frozenset(
    {
        *("steps", "tokens", "batch_size", "micro_batch_size", "sequence_length", "precision", "schedule", "clip_norm"),
        *("objective", "optimizer", "memory", "validate_every", "validation_tokens", "log_every", "compile", "seed"),
    }
)
_WITHOUT_EFFECT = frozenset(
    {"checkpoint_every", "keep_last", "sample_every", "prompts", "sample_tokens", "tensorboard"}
)
"""Settings about what is kept and shown while training: a peer keeps and shows nothing of it."""
_PRECISIONS = ("fp32", "autocast", "bf16")
_OBJECTIVES = ("lm", "sft")
_OPTIMIZERS = ("adamw", "sgd")
"""Those that are torch's own; others reach into the training loop."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A library that carries out recipes: what it does, the packages it needs, and whether it adds adapters."""

    name: PeerName
    summary: str
    packages: tuple[str, ...]
    adapters: bool


PEERS: dict[str, Peer] = {
    "transformers": Peer("transformers", "transformers.Trainer", ("transformers", "accelerate"), adapters=False),
    "peft": Peer(
        "peft", "peft's adapters in transformers.Trainer", ("peft", "transformers", "accelerate"), adapters=True
    ),
}


def find(name: str) -> Peer:
    """The peer called `name`. RequestError with those that there are."""
    if name not in PEERS:
        raise unknown("peer", name, PEERS)
    return PEERS[name]


def check(peer: Peer, recipe: Recipe) -> None:
    """RequestError for what the peer cannot do as the recipe says."""
    applied = [step.apply for step in recipe.steps if isinstance(step, ApplyStep)]
    trained = [step.train for step in recipe.steps if isinstance(step, TrainStep)]
    foreign = [config.method for config in applied if not (peer.adapters and method_of(config).peft_type)]
    if foreign:
        raise RequestError(f"{peer.summary} cannot apply {foreign[0]}.", hint="Leave peer out for this row.")
    if not trained:
        raise RequestError(f"{peer.summary} has nothing to do: the recipe trains nothing.")
    if peer.adapters and (len(applied) != 1 or recipe.model.path is None):
        raise RequestError(f"{peer.summary} needs a recipe that applies one adapter, such as lora, to a saved model.")
    if peer.adapters and recipe.model.new_tokens is not None:
        raise RequestError(f"{peer.summary} saves the base as it was, without the rows of model.new_tokens.")
    if recipe.model.task != "causal":
        raise RequestError(
            f"{peer.summary} is compared on models that predict tokens, not on task {recipe.model.task}."
        )
    if recipe.saving != Save(merge=recipe.saving.merge) or (recipe.saving.merge and not peer.adapters):
        raise RequestError(f"{peer.summary} saves the model as it is in memory; leave the save step out.")
    for train in trained:
        _check_train(peer, train)


def run(
    peer: Peer, recipe: Recipe, folder: Path | str | None = None, *, fresh: bool = False, console: Console | None = None
) -> Run:
    """`recipe` carried out by a peer, in a run's folder like any other. RequestError where it cannot be."""
    from hayless.recipe.execute import run as execute

    check(peer, recipe)
    missing = [package for package in peer.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise RequestError(
            f"The peer {peer.name} needs {' and '.join(missing)}, which is not installed.",
            hint='pip install "hayless[peers]"',
        )
    from hayless.study.peers.trainer import TrainerPeer

    return execute(recipe, folder, fresh=fresh, console=console, by=TrainerPeer(peer))


def _check_train(peer: Peer, train: Train) -> None:
    plain = Train(steps=1)
    changed = {name for name in Train.model_fields if getattr(train, name) != getattr(plain, name)}
    odd = sorted(changed - _HONOURED - _WITHOUT_EFFECT)
    odd += [f"precision {train.precision}"] if train.precision not in _PRECISIONS else []
    odd += [f"objective {train.objective.method}"] if train.objective.method not in _OBJECTIVES else []
    odd += [f"optimizer {train.optimizer.method}"] if train.optimizer.method not in _OPTIMIZERS else []
    odd += [f"memory {config.method}" for config in train.memory if not _plain_checkpointing(config)]
    if odd:
        raise RequestError(f"{peer.summary} does not train with {', '.join(odd)} as the recipe means it.")


def _plain_checkpointing(config: MethodConfig) -> bool:
    return config.method == "checkpointing" and config == type(config)(method="checkpointing")
