"""What a user can set about measuring a saved model. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.core.options import Count, Options


class MeasureSettings(Options):
    """What is measured of the saved model, in fresh processes."""

    quality: bool = Field(True, description="Loss, bits per byte and perplexity on held-out documents.")
    heldout_tokens: Count = Field(65_536, ge=2, description="Held-out tokens that quality looks at.")
    context: int | None = Field(None, ge=2, description="Tokens of context; the model's own limit if not given.")
    stride: int | None = Field(None, ge=1, description="Tokens between windows; half the context if not given.")
    batch_size: int = Field(8, ge=1, description="Windows computed at once; changes speed and memory, not the result.")
    drift_tokens: Count = Field(
        2048, ge=0, description="Held-out tokens measured again in batches of another size, for the drift; 0 for none."
    )
    decode: bool = Field(True, description="First-token time, ms a token, and peak memory while generating.")
    prompt_tokens: int = Field(32, ge=1, description="Length of the prompt when decoding is timed.")
    decode_tokens: int = Field(64, ge=2, description="Tokens generated when decoding is timed.")


class DecodeBench(Options):
    """How decoding is timed. Prompts are random tokens."""

    batch_size: Count = Field(1, ge=1, description="Prompts continued side by side.")
    prompt_tokens: Count = Field(128, ge=1, description="Tokens of each prompt.")
    tokens: Count = Field(64, ge=2, description="Tokens generated after each prompt.")
    repeats: Count = Field(5, ge=1, description="Generations that are timed, after a warm-up.")
    backend: Literal["auto", "modules", "program", "graphs"] = Field("auto", description="How the engine runs a model.")
    at_once: int = Field(
        0, ge=0, le=64, description="Also time a step of 1, 2, 4, ... rows at once, up to so many; 0 does not."
    )


class TrainBench(Options):
    """How bare training steps are timed. Sequences are random tokens."""

    batch_size: Count = Field(4, ge=1, description="Sequences of a step.")
    sequence_length: Count = Field(256, ge=2, description="Tokens of a sequence.")
    steps: Count = Field(10, ge=1, description="Steps that are timed, after a warm-up.")
