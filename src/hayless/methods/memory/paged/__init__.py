"""Paged AdamW: moments in pinned host memory, brought to the device page by page."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.memory.paged.config import PagedConfig
from hayless.methods.memory.paged.predict import predict_training

METHOD = Method(
    name="paged",
    part=Part.OPTIMIZER,
    summary="AdamW whose moments lie in the host's memory, all or a share, and visit the device page by page",
    config=PagedConfig,
    implementation="hayless.methods.memory.paged.optimizer:Paged",
    predict=unchanged,
    predict_training=predict_training,
    gives_up="moments cross to the host and back every update",
    paper=Paper("QLoRA: Efficient Finetuning of Quantized LLMs", "Dettmers et al.", 2023, "2305.14314"),
)
