"""What a user can say about data. No torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.options import Options

Format = Literal["auto", "text", "jsonl", "alpaca", "prompt_completion", "preference"]


class Source(Options):
    """One place that documents or examples come from."""

    path: str | None = Field(None, description="A file, a folder (searched for text files) or a glob pattern.")
    builtin: Literal["stdlib"] | None = Field(
        None, description="`stdlib`: the running interpreter's own library, documentation and headers."
    )
    format: Format = Field("auto", description="How to read it; auto looks at the content and says what it found.")
    domain: str | None = Field(
        None, description="Name of the domain; the file's folder or the format's own if not given."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give exactly one of path and builtin")
        return self


class DataConfig(Options):
    """The data of a recipe: where it comes from and what is held out."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Where documents or examples come from.")
    domains: tuple[str, ...] = Field((), description="Only these domains; empty takes all.")
    proportions: dict[str, float] = Field(
        default_factory=dict, description="Share of tokens a domain gets; empty takes domains by their size."
    )
    heldout: float = Field(
        0.05, gt=0, lt=1, description="Share of documents held out, chosen by a hash of their names."
    )
    near_duplicates: bool = Field(
        True, description="Drop documents that nearly copy an earlier one (exact copies always go)."
    )

    @model_validator(mode="after")
    def _sane(self) -> Self:
        for name, share in self.proportions.items():
            if share < 0:
                raise ValueError(f"proportions.{name} = {share} must not be negative")
        if self.proportions and not sum(self.proportions.values()):
            raise ValueError("proportions must not all be zero")
        return self
