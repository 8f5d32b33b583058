"""The bodies that OpenAI's clients send, as far as this server does what they ask.

Fields that are not done must have the value that asks for nothing; anything else is refused by name, never ignored.
https://platform.openai.com/docs/api-reference, completions and chat. `top_k`, `min_p` and `ignore_end` are additions
(`extra_body` of the `openai` package).
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hayless.core.options import checked
from hayless.decode.options import MOST_TOP, SamplingOptions

Tokens = list[int]


def _strings(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    """What comes with a stream."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: Literal[False, None] = None


class AdapterBody(BaseModel):
    """POST /v1/models: serve one more adapter of the folder that the server was started with."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(min_length=1)


class _Body(BaseModel):
    """What both kinds of requests can set."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=False)

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1)
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_strings), Field(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_end: bool = False
    user: str | None = None
    # Not done: only what asks for nothing is let through.
    presence_penalty: float | None = Field(0, ge=0, le=0)
    frequency_penalty: float | None = Field(0, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _usage_belongs_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true only")
        return self

    def options(self, max_tokens: int, top_logprobs: int) -> list[SamplingOptions]:
        """Options of the `n` continuations: choice i draws with seed + i; without a seed, with one nobody knows."""
        first = secrets.randbits(62) if self.seed is None else self.seed
        shared = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "stop": tuple(self.stop),
            "max_tokens": max_tokens,
            "top_logprobs": top_logprobs,
            "ignore_end": self.ignore_end,
        }
        # Clients may send any 64-bit number; ours have 63 bits.
        seeds = [(first + number) % 2**63 for number in range(self.n)]
        return [checked(SamplingOptions, {**shared, "seed": seed}, {}) for seed in seeds]


class CompletionBody(_Body):
    """POST /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens]
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False, None] = False
    best_of: Literal[1, None] = None
    suffix: None = None

    @property
    def prompts(self) -> list[str] | list[Tokens]:
        """One prompt or many, as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class ResponseFormat(BaseModel):
    """Only text is."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class ChatBody(_Body):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=0)
    tool_choice: Literal["none", None] = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False, None] = None

    @model_validator(mode="after")
    def _top_belongs_to_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true only")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most; None: as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens
