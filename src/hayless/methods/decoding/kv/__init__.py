"""A quantized cache: keys by channel and values by token in 8, 4 or 2 bits, the latest tokens as they are."""

from __future__ import annotations

from hayless.core.method import Method, Paper, Part, unchanged
from hayless.methods.decoding.kv.config import KVConfig
from hayless.methods.decoding.kv.predict import predict_decoding

METHOD = Method(
    name="kv",
    part=Part.CACHE,
    summary="Hold the keys and values of all but the latest tokens in 8, 4 or 2 bits",
    config=KVConfig,
    implementation="hayless.methods.decoding.kv.part:QuantizedKV",
    predict=unchanged,
    predict_decoding=predict_decoding,
    paper=Paper("KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", "Liu et al.", 2024, "2402.02750"),
)
