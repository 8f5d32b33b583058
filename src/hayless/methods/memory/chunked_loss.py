"""The loss without the logits of all tokens: hidden states go through the head a chunk of tokens at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from hayless.core.cost import TrainShape
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged


class ChunkedLossConfig(MethodConfig):
    """Logits of a few tokens at once; the loss is the same to rounding, and no product is computed twice."""

    method: Literal["chunked_loss"] = "chunked_loss"
    tokens: int = Field(
        1024, ge=1, description="Tokens whose logits exist at once: more make larger products, and need more memory."
    )


def predict_training(shape: TrainShape, config: ChunkedLossConfig) -> TrainShape:
    """Training whose logits never exist all at once."""
    return replace(shape, loss_chunk=config.tokens)


METHOD = Method(
    name="chunked_loss",
    part=Part.MEMORY,
    summary="Compute the loss a chunk of tokens at a time, never the logits of all",
    config=ChunkedLossConfig,
    implementation="hayless.methods.memory.chunks:ChunkedLoss",
    predict=unchanged,
    predict_training=predict_training,
    paper=Paper("Liger Kernel: Efficient Triton Kernels for LLM Training", "Hsu et al.", 2024, "2410.10989"),
)
