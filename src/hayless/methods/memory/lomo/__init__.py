"""LOMO: gradient descent whose updates are fused into the backward pass."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.memory.lomo.config import LomoConfig
from hayless.methods.memory.lomo.predict import predict_training

METHOD = Method(
    name="lomo",
    part=Part.OPTIMIZER,
    summary="Gradient descent fused into the backward pass: no gradients and no states to hold",
    config=LomoConfig,
    implementation="hayless.methods.memory.lomo.optimizer:Lomo",
    predict=unchanged,
    predict_training=predict_training,
    gives_up="every weight moves at one rate, and gradients are not accumulated",
    paper=Paper(
        "Full Parameter Fine-tuning for Large Language Models with Limited Resources", "Lv et al.", 2023, "2306.09782"
    ),
)
