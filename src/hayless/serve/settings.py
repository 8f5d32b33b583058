"""What a user can set about serving. No torch."""

from __future__ import annotations

from pydantic import Field

from hayless.core.options import ByteCount, Count, Options


class ServeSettings(Options):
    """Limits of the server. What is beyond them is refused at once, with the status that clients know."""

    rows: int = Field(16, ge=1, le=1024, description="Requests that run side by side.")
    tokens: Count | None = Field(
        None,
        ge=2,
        description="Tokens of a request at most, prompt and continuation; the model's context if not given.",
    )
    queue: int = Field(256, ge=0, description="Requests that may wait for a row; more are answered 429.")
    timeout: float = Field(600.0, gt=0, description="Seconds after which a request is ended, finished or not.")
    body: ByteCount = Field(2**21, ge=1024, description="Bytes of a request's body at most; more are answered 413.")
    choices: int = Field(16, ge=1, description="Continuations (n, or prompts) of one request at most.")
    adapter_slots: int | None = Field(
        None,
        ge=1,
        description="Adapters for which there is room at once; as many as there are, 8 at least, if not given.",
    )
    adapter_rank: int | None = Field(
        None,
        ge=1,
        description="Rank of adapters that may be added later, on any matrix of the blocks; if not given, there is room"
        " for the ranks and modules of those in the folder.",
    )
    grace: float = Field(30.0, ge=0, description="Seconds that running requests get when the server is stopped.")
