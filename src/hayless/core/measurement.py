"""One row schema for every figure: runs, studies, benchmarks and verified plans write the same thing."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field


class Goal(BaseModel):
    """What a figure is held to: at least or at most a value, or a ratio to another contender's value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: Literal[">=", "<="]
    value: float | None = None
    against: str | None = None
    ratio: float | None = None


class Measurement(BaseModel):
    """A named figure with its unit, and beside it what was predicted, published and aimed at.

    `low` and `high` bound the spread: a 95% interval for quality, the 20th and 80th percentile for times. `note` says
    where the figure comes from or why it is missing (`value` None).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    predicted: float | None = None
    published: float | None = None
    goal: Goal | None = None
    note: str = ""
    better: Literal["lower", "higher", "neither"] = "neither"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def error(self) -> float | None:
        """(predicted − measured) / measured, where both exist and the measured one is not zero."""
        if self.predicted is None or not self.value:
            return None
        return (self.predicted - self.value) / self.value


class Machine(BaseModel):
    """The machine and versions a set of measurements belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    cores: int
    memory_bytes: int
    accelerator: str | None = None
    accelerator_bytes: int | None = None
    python: str
    versions: dict[str, str] = Field(default_factory=dict)
