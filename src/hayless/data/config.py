"""What a user can say about data. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.options import Options

Format = Literal["auto", "text", "jsonl", "alpaca", "prompt_completion", "messages", "sharegpt", "preference"]

ProblemName = Literal[
    "nothing_to_learn",
    "exact_copies",
    "near_copies",
    "contaminated",
    "no_trained_token",
    "answer_cut_off",
    "truncated",
    "end_never_trained",
    "pad_is_end",
    "begin_doubled",
    "begin_missing",
    "special_in_chat",
    "end_inside",
    "special_as_text",
    "turn_inside_token",
    "unknown_tokens",
    "outside_model",
    "new_token_unseen",
    "contained",
]
"""What `hayless data check` looks for."""


class Source(Options):
    """One place that documents or examples come from."""

    path: str | None = Field(None, description="A file, a folder (searched for text files) or a glob pattern.")
    builtin: Literal["stdlib", "stdlib_instructions", "stdlib_preferences"] | None = Field(
        None,
        description="`stdlib`: the running interpreter's own library, documentation and headers;"
        " `stdlib_instructions`: signatures and what they do; `stdlib_preferences`: sentences and heaps of words.",
    )
    hub: str | None = Field(None, description="Id of a dataset on the Hugging Face hub; its code is never run.")
    subset: str | None = Field(None, description="Which configuration of a hub dataset, where it has several.")
    split: str = Field("train", description="Which split of a hub dataset; a part is written `train[:1000]`.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub dataset.")
    streaming: bool = Field(
        False, description="Read a hub dataset over the network as it is needed, instead of copying it to disk first."
    )
    limit: int | None = Field(None, ge=1, description="Only the first so many rows of a hub dataset.")
    format: Format = Field("auto", description="How to read it; auto looks at the content and says what it found.")
    domain: str | None = Field(
        None, description="Name of the domain; the file's folder or the format's own if not given."
    )
    template: Literal["plain", "chat"] = Field(
        "plain",
        description="How instructions and questions are put: in the plain template, or as chats in the tokenizer's.",
    )
    turns: Literal["all", "last"] = Field(
        "all", description="Which of the assistant's turns of a chat are learnt: all of them, or the last."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if [self.path, self.builtin, self.hub].count(None) != 2:
            raise ValueError("give exactly one of path, builtin and hub")
        if self.hub is None:
            for name in ("subset", "split", "revision", "streaming", "limit"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for hub datasets only: leave it out, or give hub")
        return self

    @property
    def name(self) -> str:
        """What a message calls the source."""
        return self.path or self.builtin or f"{self.hub}{f' ({self.subset})' if self.subset else ''}, {self.split}"


class Mixture(Options):
    """The shares of domains from a training step on."""

    step: int = Field(ge=0, description="The first step with these shares, counted from 0.")
    shares: dict[str, float] = Field(min_length=1, description="Share of rows that a domain gets, in any scale.")

    @model_validator(mode="after")
    def _sane(self) -> Self:
        _check_shares("shares", self.shares)
        return self


def _check_shares(field: str, shares: dict[str, float]) -> None:
    for name, share in shares.items():
        if share < 0:
            raise ValueError(f"{field}.{name} = {share} must not be negative")
    if shares and not sum(shares.values()):
        raise ValueError(f"{field} must not all be zero")


class DataConfig(Options):
    """The data of a recipe: where it comes from and what is held out."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Where documents or examples come from.")
    domains: tuple[str, ...] = Field((), description="Only these domains; empty takes all.")
    proportions: dict[str, float] | tuple[Mixture, ...] = Field(
        default_factory=dict,
        description="Share of rows that a domain gets, or a list of {step, shares} where that changes; empty takes"
        " domains by their size.",
    )
    heldout: float = Field(
        0.05, gt=0, lt=1, description="Share of documents held out, chosen by a hash of their names."
    )
    near_duplicates: bool = Field(
        True, description="Drop documents that nearly copy an earlier one (exact copies always go)."
    )

    allow: tuple[ProblemName, ...] = Field(
        (), description="Problems of the data that are accepted, by the names that `hayless data check` gives them."
    )

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if isinstance(self.proportions, dict):
            _check_shares("proportions", self.proportions)
            return self
        steps = [mixture.step for mixture in self.proportions]
        if steps and (steps[0] != 0 or any(later <= earlier for earlier, later in pairwise(steps))):
            raise ValueError(f"proportions must start at step 0 and go on in order; the steps are {steps}")
        return self
