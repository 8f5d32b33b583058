"""What can be combined into a way to train a model: read from the cards of the catalogue, with no list of names.

A way is a chain of transforms, an optimizer and a precision. A chain either leaves the model as it is (all weights are
trained), or adds a branch, beside weights as they are or packed. Which methods do that follows from what their cards
claim, so a new method joins by its card.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hayless.core.compose import compose
from hayless.core.compose import predict as rewrite
from hayless.core.cost import TrainShape, is_packed
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError
from hayless.core.families import ledger_of
from hayless.core.ledger import Ledger
from hayless.core.method import Aspect, Method, MethodConfig, Need, Part
from hayless.core.registry import method_of, methods

PRECISIONS = {"master": "", "bf16": "small updates are rounded away"}
"""Precision → what it gives up."""


Ladder = Sequence[tuple[MethodConfig, ...]]
"""Memory methods that are in force together, from the fastest selection to the leanest."""


@dataclass(frozen=True, slots=True)
class Way:
    """Transforms of the model in order, what moves the weights and their precision; `ledger` is the model then."""

    transforms: tuple[MethodConfig, ...]
    optimizer: MethodConfig
    precision: str
    ledger: Ledger

    @property
    def name(self) -> str:
        """`full, adamw, master` or `kmeans(bits=8)+lora, adamw, bf16`."""
        return ", ".join(["+".join(map(label, self.transforms)) or "full", label(self.optimizer), self.precision])

    @property
    def gives_up(self) -> tuple[str, ...]:
        """What this way gives up, in words; nothing where every weight is trained as well as can be."""
        bits = packed_bits(self.ledger)
        found = [
            method_of(self.optimizer).gives_up,
            "all but a branch stays as it is" if self.branches else "",
            f"the rest in {bits:g} bits" if bits else "",
            PRECISIONS[self.precision],
        ]
        return tuple(filter(None, found))

    @property
    def rank(self) -> tuple[float, ...]:
        """Ways are preferred in this order: a plain optimizer that gives something up comes last; all weights before a
        branch; a branch beside whole weights before one beside packed ones; float32 masters before rounding; of
        branches the larger, by the power of ten of what is trained."""
        share = self.ledger.trainable / self.ledger.parameters
        return (
            bool(method_of(self.optimizer).gives_up),
            self.branches,
            -(packed_bits(self.ledger) or 1e3),
            list(PRECISIONS).index(self.precision),
            -math.floor(math.log10(share)),
        )

    @property
    def fused(self) -> bool:
        """Whether weights are moved in the backward pass, so that an update is one micro-batch."""
        return method_of(self.optimizer).predict_training(TrainShape(1, 1), self.optimizer).fused

    @property
    def branches(self) -> bool:
        """Whether a branch is trained instead of the model's own weights."""
        return any(_claims(config, Aspect.BRANCH) for config in self.transforms)


def ways(dims: ModelDims, before: Sequence[MethodConfig]) -> tuple[list[Way], dict[str, str]]:
    """Every way to train a model that has had the transforms `before`; and chain → why it cannot be, in words."""
    found: list[Way] = []
    impossible: dict[str, str] = {}
    untouched = ledger_of(dims)
    for transforms in _chains(dims):
        name = "+".join(map(label, transforms)) or "full"
        try:
            if not transforms and any(is_packed(row) for row in rewrite(untouched, before).rows):
                raise RequestError("Its weights are packed, and packed weights do not train.")
            ordered = compose([*before, *transforms])[len(before) :]
            ledger = rewrite(untouched, [*before, *ordered])
        except RequestError as error:
            impossible[name] = error.message
            continue
        # A branch is small, and so is what any optimizer remembers of it: nothing is given up for that.
        optimizers = [card for card in methods([Part.OPTIMIZER]) if not (transforms and card.gives_up)]
        found += [
            Way(tuple(ordered), optimizer, precision, ledger)
            for card in optimizers
            for optimizer in rungs(card, dims)
            for precision in PRECISIONS
        ]
    return sorted(found, key=lambda way: way.rank), impossible


def ladder(dims: ModelDims) -> Ladder:
    """Memory methods from those that are free to all of them: methods with few settings join first, each setting by
    setting, and what works upon another one after all those."""
    cards = methods([Part.MEMORY])
    found = [tuple(rung for card in cards if card.free for rung in rungs(card, dims)[:1])]
    paid = [card for card in cards if not card.free]
    for card in sorted(paid, key=lambda card: (bool(card.upon), len(rungs(card, dims)))):
        below = found[-1]
        found += [(*below, rung) for rung in rungs(card, dims)]
    return found


def rungs(card: Method, dims: ModelDims) -> Sequence[Any]:
    """The settings of a method that are worth trying on a model, from the fastest to the leanest."""
    return card.ladder(dims) if card.ladder else [card.config(method=card.name)]


def packings(dims: ModelDims) -> list[MethodConfig]:
    """Every way to pack the weights of a model."""
    return _claiming(Aspect.STORAGE, dims)


def packed_bits(ledger: Ledger) -> float | None:
    """The fewest bits in which a matrix is packed, to a tenth; None where none is."""
    packed = [8 * row.bytes / row.elements for row in ledger.rows if is_packed(row) and not row.tied_to]
    return round(min(packed), 1) if packed else None


def label(config: MethodConfig) -> str:
    """A method and the options that are not its defaults: `kmeans(bits=8)`."""
    options = config.model_dump(exclude_defaults=True, exclude={"method"})
    return config.method + (f"({', '.join(f'{name}={value}' for name, value in options.items())})" if options else "")


def settings_of(config: MethodConfig) -> dict[str, Any]:
    """A method as a recipe names it: its name and the options that are not its defaults."""
    return {"method": config.method, **config.model_dump(mode="json", exclude_defaults=True, exclude={"method"})}


def _chains(dims: ModelDims) -> Iterator[tuple[MethodConfig, ...]]:
    """Nothing; each branch; each way to pack weights with each branch after it."""
    yield ()
    for branch in _claiming(Aspect.BRANCH, dims):
        yield (branch,)
        for packing in packings(dims):
            yield packing, branch


def _claiming(aspect: Aspect, dims: ModelDims) -> list[MethodConfig]:
    """Settings of the transforms that claim an aspect and need nothing beside the model but text."""
    cards = [card for card in methods([Part.TRANSFORM]) if set(card.needs) <= {Need.CALIBRATION}]
    return [config for card in cards for config in rungs(card, dims) if _claims(config, aspect)]


def _claims(config: MethodConfig, aspect: Aspect) -> bool:
    card = method_of(config)
    return card.part is Part.TRANSFORM and any(claim.aspect is aspect for claim in card.claims(config))
