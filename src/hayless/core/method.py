"""A Method: the one kind of thing every technique is.

A method is a card (a frozen config whose fields carry docs and units, a prediction, a paper) and exactly one part: a
*transform* of the model, a part of *training*, or a part of *decoding*. The card imports no torch; the part is named by
a string and imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

from hayless.core.cost import DecodeShape, TrainShape
from hayless.core.dims import ModelDims
from hayless.core.files import WeightFiles
from hayless.core.ledger import Ledger
from hayless.core.options import Options
from hayless.core.roles import Role


class Part(StrEnum):
    """The slot a method fills."""

    TRANSFORM = "transform"
    OBJECTIVE = "objective"
    OPTIMIZER = "optimizer"
    MEMORY = "memory"
    DATA = "data"
    MESH = "mesh"
    DRAFT = "draft"
    EXIT = "exit"
    CACHE = "cache"

    @property
    def kind(self) -> str:
        """`transform`, `train` or `decode`: the step of a recipe that takes this part."""
        if self is Part.TRANSFORM:
            return "transform"
        return "decode" if self in (Part.DRAFT, Part.EXIT, Part.CACHE) else "train"


class Aspect(StrEnum):
    """What a transform changes about a role, in the order in which changes must be made."""

    SHAPE = "shape"
    """Removes or adds rows, columns, heads or layers."""
    VALUES = "values"
    """Writes other values into the weights."""
    STORAGE = "storage"
    """Replaces how the weights are stored; they no longer receive gradients."""
    FORWARD = "forward"
    """Replaces what the module computes."""
    BRANCH = "branch"
    """Adds a trainable branch beside the module and freezes the rest."""


class Need(StrEnum):
    """What a transform must be given besides the model."""

    CALIBRATION = "calibration text"
    GRADIENTS = "gradients"
    TRAINED_ADAPTER = "a trained adapter"


@dataclass(frozen=True, slots=True)
class Claim:
    """A transform changes `aspect` of these roles."""

    aspect: Aspect
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a technique was published."""

    title: str
    authors: str
    year: int
    arxiv: str | None = None

    def __str__(self) -> str:
        where = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors}, {self.title} ({self.year}{where})"


@dataclass(frozen=True, slots=True)
class Ecosystem:
    """Another library's layout of packed weights in a model folder, as far as a method writes and reads it.

    `name` is what formats and rows call it: a folder is in one layout. `quant_method` is what transformers'
    `quantization_config` calls the library. `write` gives that `quantization_config` for the transforms of a model and
    its ledger. `read` gives our config for one, from it, the names and small tensors of the files and the ledger of the
    model before it was packed: None where it is about another layout of the same library, NotSupported naming what
    cannot be honoured.
    """

    name: str
    quant_method: str
    write: Callable[[Sequence[MethodConfig], Ledger], dict[str, Any]]
    read: Callable[[Mapping[str, Any], WeightFiles, Ledger], MethodConfig | None]


class MethodConfig(Options):
    """What a user can set. Subclasses add `method: Literal[name]` first, then one documented field an option."""

    method: str


Predict = Callable[[Ledger, Any], Ledger]
PredictTraining = Callable[[TrainShape, Any], TrainShape]
Rate = Callable[[Any, str], float]
PredictDecoding = Callable[[DecodeShape, Any], DecodeShape]


@dataclass(frozen=True, slots=True)
class Method:
    """The card of a technique.

    `part` says which slot `implementation` ("module:attribute") fills; the protocols of the slots are documented where
    the slots are (`hayless.model.transform`, `hayless.train.slots`, `hayless.decode.slots`). `predict` rewrites the
    ledger the way the method rewrites the model, exactly in parameters and bytes. `claims` may depend on the config,
    and `needs_by` says what a config needs beyond `needs`.
    `peft_type` names the adapter format of PEFT that this method reads and writes, `unmerged` says why what it adds
    never can be folded into the base (empty where it can, or where that depends on the model), `ecosystems` names the
    layouts of packed weights that other libraries read. `predict_training` is to training what `predict` is to the
    model: an optimizer states its bytes a parameter, a memory method what is computed again;
    `predict_decoding` to decoding. `rate` is what the learning rate is multiplied by for a trained tensor, by its name.
    Every option of a transform has a default, so that a bare name is a valid request.

    The recommender (`hayless.plan.recommend`) reads four fields. `gives_up` says in words what an optimizer costs
    beside time; empty for one that gives up nothing. `upon` names the memory method that must be in force before this
    one. `ladder` gives the settings worth trying on a model, from the fastest to the one that needs least memory;
    without one it is the defaults alone, and an empty one keeps a method out. `free`: a memory method takes neither
    time nor memory, so that the first of its settings is in force in all that is tried.
    """

    name: str
    part: Part
    summary: str
    config: type[MethodConfig]
    implementation: str
    predict: Predict
    claims: Callable[[Any], tuple[Claim, ...]] = lambda config: ()
    needs: tuple[Need, ...] = ()
    needs_by: Callable[[Any], tuple[Need, ...]] = lambda config: ()
    paper: Paper | None = None
    peft_type: str | None = None
    unmerged: str = ""
    ecosystems: tuple[Ecosystem, ...] = ()
    predict_training: PredictTraining = lambda shape, config: shape
    predict_decoding: PredictDecoding = lambda shape, config: shape
    rate: Rate = lambda config, name: 1.0
    gives_up: str = ""
    upon: str = ""
    free: bool = False
    ladder: Callable[[ModelDims], Sequence[Any]] | None = None

    def needed(self, config: Any) -> tuple[Need, ...]:
        """What it must be given with this config."""
        return *self.needs, *self.needs_by(config)

    @property
    def adds_adapter(self) -> bool:
        """Whether a model has an adapter after this method: its own, or one that it made of others."""
        return bool(self.peft_type) or Need.TRAINED_ADAPTER in self.needs

    def load(self) -> Any:
        """Import and return the part. This is where torch comes in."""
        module, _, attribute = self.implementation.partition(":")
        return getattr(import_module(module), attribute)


def unchanged(ledger: Ledger, config: MethodConfig) -> Ledger:
    """The prediction of a method that leaves the model's tensors as they are."""
    return ledger
