"""Early exit: a token leaves the model at the layer behind which it is sure enough."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.decoding.early_exit.config import EarlyExitConfig

METHOD = Method(
    name="early_exit",
    part=Part.EXIT,
    summary="Let each token leave at the layer behind which the model is sure of the next one",
    config=EarlyExitConfig,
    implementation="hayless.methods.decoding.early_exit.part:EarlyExit",
    predict=unchanged,
    paper=Paper("Confident Adaptive Language Modeling", "Schuster et al.", 2022, "2207.07061"),
)
