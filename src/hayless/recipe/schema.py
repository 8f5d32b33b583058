"""Recipes: a model, data, and an ordered list of steps. Strictly typed; no torch.

A recipe is data. `hayless.recipe.load` reads it from YAML, the Python API builds the same objects, and the executor
takes nothing else.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from hayless.core.compose import check_order
from hayless.core.errors import RequestError
from hayless.core.method import MethodConfig, Need, Part
from hayless.core.options import Count, Options
from hayless.core.registry import configure, method_of, methods
from hayless.data.config import DataConfig
from hayless.measure.settings import MeasureSettings
from hayless.model.new_tokens import NewTokens
from hayless.train.settings import TrainSettings


def _union(part: Part, default: str | None = None) -> Any:
    """Any method that fills `part`, told apart by its name; `default` is meant where options come without a name."""

    def by_name(value: Any) -> Any:
        if isinstance(value, str):
            return {"method": value}
        if default and isinstance(value, dict) and "method" not in value:
            return {"method": default, **value}
        return value

    configs = [method.config for method in methods([part])]
    choice = Annotated[reduce(or_, configs), Field(discriminator="method")] if len(configs) > 1 else configs[0]
    return Annotated[choice, BeforeValidator(by_name)]


if TYPE_CHECKING:
    # The unions are made from the catalogue when the module is imported; a type checker sees what they share.
    TransformConfig = MethodConfig
    ObjectiveConfig = MethodConfig
    OptimizerConfig = MethodConfig
    MemoryConfig = MethodConfig
    DraftConfig = MethodConfig
    ExitConfig = MethodConfig
    CacheConfig = MethodConfig
else:
    TransformConfig = _union(Part.TRANSFORM)
    ObjectiveConfig = _union(Part.OBJECTIVE, default="lm")
    OptimizerConfig = _union(Part.OPTIMIZER, default="adamw")
    MemoryConfig = _union(Part.MEMORY)
    DraftConfig = _union(Part.DRAFT, default="speculative")
    ExitConfig = _union(Part.EXIT, default="early_exit")
    CacheConfig = _union(Part.CACHE, default="kv")


_SMALLEST = 260


class TokenizerSection(Options):
    """A tokenizer to train on the recipe's training documents."""

    level: Literal["char", "word", "bpe", "unigram"] = Field("bpe", description="What a token is.")
    vocab_size: int = Field(4096, ge=_SMALLEST, le=1_000_000, description="Entries, special and new tokens included.")


class Calibration(Options):
    """Text that methods are calibrated on, for recipes that apply such a method."""

    path: str | None = Field(
        None, description="A file or folder of text or examples; the recipe's training documents if not given."
    )
    tokens: Count = Field(131_072, ge=1, description="How many tokens, `131k` also; documents in a seeded order.")
    sequence_length: int = Field(
        1024,
        ge=2,
        description="Tokens a row; fewer where the model's own limit is lower. Rows are read each by itself.",
    )
    seed: int = Field(0, ge=0, description="Seeds the order of the documents.")


class ModelSection(Options):
    """The model a recipe starts from: a trained one (`path`) or a shape with random weights (`config`)."""

    path: str | None = Field(None, description="A Hugging Face model folder, or a hub id.")
    config: dict[str, Any] | None = Field(None, description="A Hugging Face config; weights start at random.")
    tokenizer: str | TokenizerSection | None = Field(
        None, description="A folder or hub id, or one to train; the model's own if not given."
    )
    new_tokens: NewTokens | None = Field(
        None, description="Tokens to add to the tokenizer, with rows in the embedding and the head."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Type of the weights in memory; as stored (or float32 for a new model) if not given."
    )
    task: Literal["causal", "reward"] = Field(
        "causal", description="causal: predicts tokens. reward: scores a whole sequence with one number."
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of path and config")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a new model needs a tokenizer: a path, or {level: bpe, vocab_size: 4096} to train one")
        if isinstance(self.tokenizer, TokenizerSection) and self.learnt_entries < _SMALLEST:
            raise ValueError(
                f"tokenizer.vocab_size ({self.tokenizer.vocab_size}) leaves {self.learnt_entries} entries beside"
                f" new_tokens; at least {_SMALLEST} are learnt"
            )
        return self

    @property
    def learnt_entries(self) -> int:
        """How many entries a tokenizer to train has before it gets new tokens."""
        assert isinstance(self.tokenizer, TokenizerSection)
        return self.tokenizer.vocab_size - (len(self.new_tokens.all) if self.new_tokens else 0)


class Train(TrainSettings):
    """A training step: the settings of the run and the methods in its slots."""

    objective: ObjectiveConfig = Field(default_factory=lambda: configure("lm"), description="What is minimised.")
    optimizer: OptimizerConfig = Field(default_factory=lambda: configure("adamw"), description="How weights move.")
    memory: tuple[MemoryConfig, ...] = Field((), description="Methods that trade time for memory.")
    only: Literal["new_tokens"] | None = Field(
        None, description="new_tokens: nothing trains but the rows of model.new_tokens. Everything trains if not given."
    )


class Decode(Options):
    """A decode step: the method in a slot of decoding, for whenever the saved model is measured."""

    draft: DraftConfig | None = Field(None, description="Who drafts tokens for the model to check.")
    exit: ExitConfig | None = Field(None, description="Where tokens leave the model before its last layer.")
    cache: CacheConfig | None = Field(None, description="In what form keys and values are held.")

    @property
    def method(self) -> MethodConfig:
        """What fills a slot."""
        return next(config for config in self._given if config is not None)

    @property
    def _given(self) -> tuple[MethodConfig | None, ...]:
        return self.draft, self.exit, self.cache

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self._given) - self._given.count(None) != 1:
            raise ValueError("a decode step has draft, exit or cache: give one of them")
        return self


class Measure(MeasureSettings):
    """A measure step: what is measured of the saved model, in fresh processes."""


class Save(Options):
    """How the model is written to the run's `model/` folder, which always happens in the end."""

    merge: bool | Literal["requantize", "dequantize"] = Field(
        False,
        description="Fold adapters into the base weights first. Where those are packed: requantize packs the sums again"
        " (small, with a new error, which is said), dequantize makes the base an ordinary model first (large, exact).",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Type the weights are written in; as they are in memory if not given."
    )


class ApplyStep(Options):
    """Change the model by one method."""

    apply: TransformConfig


class TrainStep(Options):
    """Train the model."""

    train: Train


class DecodeStep(Options):
    """Say how the model is decoded when it is measured."""

    decode: Decode


class MeasureStep(Options):
    """Measure the model as it would be shipped."""

    measure: Measure = Measure()


class SaveStep(Options):
    """Write the model."""

    save: Save = Save()


STEPS: dict[str, type[Options]] = {
    "apply": ApplyStep,
    "train": TrainStep,
    "decode": DecodeStep,
    "measure": MeasureStep,
    "save": SaveStep,
}


def _step_kind(value: Any) -> str | None:
    """The kind of a step, from its one key (or its type, when it is already built)."""
    if isinstance(value, Options):
        return next((kind for kind, step in STEPS.items() if isinstance(value, step)), None)
    if isinstance(value, dict) and len(value) == 1:
        return str(next(iter(value)))
    return None


def _bare_step(value: Any) -> Any:
    """`- measure` stands for `- measure: {}`."""
    if value in ("measure", "save"):
        return {value: {}}
    if isinstance(value, dict) and len(value) == 1 and next(iter(value.values())) is None:
        return {next(iter(value)): {}}
    return value


Step = Annotated[
    Annotated[ApplyStep, Tag("apply")]
    | Annotated[TrainStep, Tag("train")]
    | Annotated[DecodeStep, Tag("decode")]
    | Annotated[MeasureStep, Tag("measure")]
    | Annotated[SaveStep, Tag("save")],
    Discriminator(_step_kind),
    BeforeValidator(_bare_step),
]


class Recipe(Options):
    """A model, data and steps, run in order."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Names the run's folder.")
    model: ModelSection = Field(description="What the recipe starts from; a bare string is its path.")
    data: DataConfig | None = Field(None, description="Text to train and measure on.")
    calibration: Calibration | None = Field(
        None, description="Text for methods that need some; training documents at the defaults if not given."
    )
    steps: tuple[Step, ...] = Field(description="apply, train, decode, measure and save steps, in order.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        description="auto (the first GPU, else the CPU), cpu, cuda, cuda:N or mps.",
    )
    seed: int = Field(0, ge=0, description="Seeds random weights and methods; training has its own seed.")

    @field_validator("model", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.steps:
            raise ValueError("steps is empty: give at least one of apply, train, measure, save")
        for group in self._transforms_between_training():
            try:
                check_order(group)
            except RequestError as error:
                raise ValueError(str(error)) from None
        self._check_ending()
        self._check_decoding()
        uses_data = [kind for kind in map(_step_kind, self.steps) if kind in ("train", "measure")]
        uses_data += ["model.tokenizer"] if isinstance(self.model.tokenizer, TokenizerSection) else []
        if uses_data and self.data is None:
            what = f"a {uses_data[0]} step" if uses_data[0] in STEPS else "a tokenizer to train"
            raise ValueError(f"{what} needs data: add a data section")
        self._check_only()
        self._check_calibration()
        return self

    @property
    def transforms(self) -> list[MethodConfig]:
        """The methods that change the model, in order."""
        return [step.apply for step in self.steps if isinstance(step, ApplyStep)]

    @property
    def saving(self) -> Save:
        """How the model is written in the end; the defaults where no step says it."""
        return next((step.save for step in self.steps if isinstance(step, SaveStep)), Save())

    @property
    def measuring(self) -> Measure | None:
        """What is measured of the saved model, if anything is."""
        return next((step.measure for step in self.steps if isinstance(step, MeasureStep)), None)

    @property
    def decoding(self) -> Decode | None:
        """How the model is decoded when it is measured; None where no step says it."""
        return next((step.decode for step in self.steps if isinstance(step, DecodeStep)), None)

    def _check_decoding(self) -> None:
        """How a model is decoded is said once, and only where it is decoded."""
        if self.decoding is None:
            return
        if [_step_kind(step) for step in self.steps].count("decode") > 1:
            raise ValueError("steps has decode twice; a run's model is decoded in one way")
        if self.model.task != "causal":
            raise ValueError(f"a decode step is for models that predict tokens, not for task {self.model.task}")
        if self.measuring is None or not self.measuring.decode:
            raise ValueError("a decode step says how the model is decoded when it is measured: add a measure step")

    def _check_only(self) -> None:
        """Rows of new tokens train alone only where there are some."""
        for position, step in enumerate(self.steps):
            if isinstance(step, TrainStep) and step.train.only and self.model.new_tokens is None:
                raise ValueError(
                    f"steps.{position}.train.only is new_tokens, and there are none: name them in model.new_tokens"
                )

    def _check_calibration(self) -> None:
        """Methods that need text have some, and text has methods that need it."""
        calibrated = [
            config.method for config in self.transforms if Need.CALIBRATION in method_of(config).needed(config)
        ]
        if calibrated and self.data is None and (self.calibration is None or self.calibration.path is None):
            raise ValueError(f"{calibrated[0]} is calibrated on text: add a data section, or calibration.path")
        if self.calibration is not None and not calibrated:
            raise ValueError("calibration is for methods that need text, and no step applies one")

    def _check_ending(self) -> None:
        """There is one saved model a run, and what is measured is that one: both come last, once."""
        ended = ""
        for position, kind in enumerate(map(_step_kind, self.steps)):
            if kind in ("measure", "save"):
                if kind in [_step_kind(step) for step in self.steps[:position]]:
                    raise ValueError(f"steps has {kind} twice; a run saves and measures one model, in the end")
                ended = kind
            elif ended:
                raise ValueError(
                    f"steps.{position} is {kind} after {ended}; a run saves and measures one model, in the end"
                )

    def _transforms_between_training(self) -> list[list[MethodConfig]]:
        groups: list[list[MethodConfig]] = [[]]
        for step in self.steps:
            if isinstance(step, TrainStep):
                groups.append([])
            elif isinstance(step, ApplyStep):
                groups[-1].append(step.apply)
        return groups


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()
