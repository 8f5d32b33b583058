"""AdamW whose moments have 8 bits."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.optimizers.adamw8bit.config import AdamW8bitConfig
from hayless.methods.optimizers.adamw8bit.predict import predict_training

METHOD = Method(
    name="adamw8bit",
    part=Part.OPTIMIZER,
    summary="AdamW with both moments in 8 bits, block by block",
    config=AdamW8bitConfig,
    implementation="hayless.methods.optimizers.adamw8bit.optimizer:AdamW8bit",
    predict=unchanged,
    predict_training=predict_training,
    gives_up="moments in 8 bits",
    paper=Paper("8-bit Optimizers via Block-wise Quantization", "Dettmers et al.", 2021, "2110.02861"),
)
