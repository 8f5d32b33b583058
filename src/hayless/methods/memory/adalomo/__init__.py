"""AdaLomo: adaptive steps fused into the backward pass."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.memory.adalomo.config import AdaLomoConfig
from hayless.methods.memory.adalomo.predict import predict_training

METHOD = Method(
    name="adalomo",
    part=Part.OPTIMIZER,
    summary="Adaptive steps fused into the backward pass, with a second moment by rows and columns",
    config=AdaLomoConfig,
    implementation="hayless.methods.memory.adalomo.optimizer:AdaLomo",
    predict=unchanged,
    predict_training=predict_training,
    gives_up="no momentum, a second moment by rows and columns, and gradients are not accumulated",
    paper=Paper(
        "AdaLomo: Low-memory Optimization with Adaptive Learning Rate", "Lv, Yan, Guo, Lv and Qiu", 2023, "2310.10195"
    ),
)
