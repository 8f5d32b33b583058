"""Speculative sampling: drafted tokens are checked side by side, and the text is distributed as without."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.predict import predict_decoding

METHOD = Method(
    name="speculative",
    part=Part.DRAFT,
    summary="Check cheaply drafted tokens in one pass of the model",
    config=SpeculativeConfig,
    implementation="hayless.methods.decoding.speculative.part:Speculative",
    predict=unchanged,
    predict_decoding=predict_decoding,
    paper=Paper("Fast Inference from Transformers via Speculative Decoding", "Leviathan et al.", 2022, "2211.17192"),
)
