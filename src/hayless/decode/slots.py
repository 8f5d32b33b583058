"""The slots of decoding: what a method must be to fill one. The engine knows no method by name.

A card's `implementation` names a class that is made from the config, the model and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from hayless.core.dims import ModelDims
from hayless.decode.cache import KernelCache
from hayless.decode.products import RowSlots
from hayless.decode.program import Program
from hayless.decode.readers import Reader
from hayless.decode.request import Batch, Request


@dataclass(frozen=True, slots=True)
class Target:
    """The model that an engine runs, and how: `program` where it has one, with `graphs` captured, else for `reason`.

    `context` are the places that the model has; `plain` begins a batch without any method.
    """

    model: PreTrainedModel
    program: Program | None
    graphs: bool
    reason: str
    context: int | None
    plain: Callable[[Sequence[Request]], Batch]


class DraftPart(Protocol):
    """Gives a batch several tokens a pass of the model, with the distribution that the model has without it."""

    def prepare(self, target: Target, requests: Sequence[Request]) -> None:
        """Whatever is to be found out first, before a batch's clock starts; the requests stay as they are."""

    def begin(self, target: Target, requests: Sequence[Request]) -> Batch:
        """A batch of these requests."""

    def open(self, target: Target, rows: int, tokens: int) -> Batch:
        """A batch without requests yet, at most `rows` of them at once, each of at most `tokens` tokens."""


class ExitPart(Protocol):
    """Lets tokens leave the model before its last layer, which changes what the model says."""

    def no_graphs(self, program: Program) -> str | None:
        """Why its tokens cannot leave in captured graphs, or None."""

    def prepare(self, target: Target, requests: Sequence[Request]) -> None:
        """Whatever is to be found out first, before a batch's clock starts; the requests stay as they are."""

    def begin(self, target: Target, requests: Sequence[Request]) -> Batch:
        """A batch of these requests."""

    def open(self, target: Target, rows: int, tokens: int) -> Batch:
        """A batch without requests yet, at most `rows` of them at once, each of at most `tokens` tokens."""


class CachePart(Protocol):
    """Holds the keys and values of read tokens in another form than the model gives them in."""

    def reader(self, program: Program | None, adapters: RowSlots | None = None) -> Reader:
        """The model reading into an empty cache, through its program where there is one. It cuts no rows back.

        `adapters` says which row has which, for readers that read rows one by one.
        """

    def no_kernels(self, program: Program) -> str | None:
        """Why it cannot be read in captured graphs, or None."""

    def in_kernels(self, program: Program, rows: int, capacity: int) -> KernelCache:
        """A cache of `rows` empty rows that captured graphs read, each with room for `capacity` tokens."""

    def row_bytes(self, dims: ModelDims, tokens: int) -> int:
        """Bytes of what the cache holds of a row of `tokens`."""
