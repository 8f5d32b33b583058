"""What a user can set about training, whatever the objective, the optimizer and the methods. No torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hayless.core.attention import AttentionChoice
from hayless.core.options import Count, Options

Precision = Literal["fp32", "autocast", "master", "bf16", "fp16"]
Schedule = Literal["cosine", "wsd", "constant"]


class ScheduleSettings(Options):
    """The learning rate over time, as a share of the optimizer's `learning_rate`."""

    shape: Schedule = Field("cosine", description="cosine decay, warm-up-stable-decay (wsd), or constant.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of all steps over which the rate rises linearly from 0.")
    decay: float = Field(0.2, gt=0, le=1, description="wsd only: share of all steps at the end over which it falls.")
    floor: float = Field(0.1, ge=0, le=1, description="Share of the peak rate at the last step.")


class TrainSettings(Options):
    """One run of training.

    Length is given as `steps` or as `tokens` (of input, padding not counted); a step is one update of the weights by
    `batch_size` sequences, computed as micro-batches of `micro_batch_size`.
    """

    steps: Count | None = Field(None, ge=1, description="Updates of the weights. Give this or `tokens`.")
    tokens: Count | None = Field(None, ge=1, description="Tokens to train on, rounded up to whole steps.")
    batch_size: int = Field(8, ge=1, description="Sequences an update, all micro-batches together.")
    micro_batch_size: int | None = Field(None, ge=1, description="Sequences computed at once; batch_size if not given.")
    sequence_length: int = Field(
        512, ge=2, description="Tokens a sequence; longer documents are split, or truncated for examples."
    )
    precision: Precision = Field(
        "fp32",
        description="fp32; autocast (fp32 weights, 16-bit arithmetic); master (16-bit weights, gradients; fp32 master"
        " and moments: 2+2+12 bytes a parameter); bf16 (everything in bf16); fp16 (autocast with loss scaling).",
    )
    attention: AttentionChoice = Field(
        "auto",
        description="What keeps packed documents apart: eager or sdpa under an explicit mask, varlen by their lengths"
        " alone (on CUDA in 16 bits). auto takes varlen where it can, else sdpa.",
    )
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="The learning rate over time.")
    clip_norm: float | None = Field(1.0, gt=0, description="Largest gradient norm; null leaves gradients as they are.")
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0 validates at the end only.")
    validation_tokens: Count = Field(65_536, ge=1, description="Held-out tokens each validation looks at.")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0 keeps only the last.")
    keep_last: int = Field(2, ge=1, description="Checkpoints kept besides the best.")
    patience: int = Field(
        0,
        ge=0,
        description="Validations without a better loss before training stops, and the best weights are taken; 0 never.",
    )
    sample_every: int = Field(0, ge=0, description="Steps between samples of `prompts`; 0 samples none.")
    prompts: tuple[str, ...] = Field((), description="Fixed prompts continued while training, to see it learn.")
    sample_tokens: int = Field(48, ge=1, description="Tokens a sample.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.")
    compile: bool = Field(False, description="Compile the model with torch.compile, block by block.")
    deterministic: bool = Field(False, description="Use deterministic kernels, so that a GPU run repeats bit for bit.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events (needs the `track` extra).")
    seed: int = Field(0, ge=0, description="Seeds initialisation of branches, data order and dropout.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give exactly one of steps and tokens")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        if self.sample_every and not self.prompts:
            raise ValueError("sample_every needs prompts")
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches an update."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)

    @property
    def total_steps(self) -> int:
        """Updates in all."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // (self.batch_size * self.sequence_length))


RESUMABLE = frozenset(
    {
        "micro_batch_size",
        "attention",
        "validate_every",
        "validation_tokens",
        "checkpoint_every",
        "keep_last",
        "patience",
        "sample_every",
        "prompts",
        "sample_tokens",
        "log_every",
        "compile",
        "deterministic",
        "tensorboard",
    }
)
"""Settings that may change between a run and its resumption: they change rounding at most."""
