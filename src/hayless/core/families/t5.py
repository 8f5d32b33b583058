"""T5 and its 1.1 revision: encoder, decoder, cross-attention, relative positions in the first block of each stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hayless.core.dims import ModelDims, required, share
from hayless.core.families.building import Paths, config_dtype, head, linear, norm, table
from hayless.core.ledger import Row
from hayless.core.roles import Role

PATHS = Paths(
    "shared", "decoder.block", "lm_head", final_norm="decoder.final_layer_norm", encoder_blocks="encoder.block"
)


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json; `num_layers` counts the decoder's blocks."""
    heads, layers = required(config, "num_heads"), required(config, "num_layers")
    activation = str(config.get("feed_forward_proj", "relu"))
    return ModelDims(
        family="t5",
        model_type="t5",
        vocab_size=required(config, "vocab_size"),
        hidden_size=required(config, "d_model"),
        num_layers=int(config.get("num_decoder_layers") or layers),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=required(config, "d_kv"),
        intermediate_size=required(config, "d_ff"),
        max_positions=0,
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        dtype=config_dtype(config),
        gated=activation.startswith("gated-"),
        norms_per_block=3,
        encoder_layers=layers,
        relative_buckets=int(config.get("relative_attention_num_buckets", 32)),
        dropout=share(config, "dropout_rate", 0.1),
        attention_dropout=share(config, "dropout_rate", 0.1),
        activation="gelu_new" if activation == "gated-gelu" else activation.removeprefix("gated-"),
    )


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    yield table(dims, Role.EMBEDDING, "shared", (dims.vocab_size, dims.hidden_size))
    yield from _stack(dims, "encoder", dims.encoder_layers)
    yield from _stack(dims, "decoder", dims.num_layers)
    yield from head(dims, "shared", dims.hidden_size)


def _stack(dims: ModelDims, stack: str, count: int) -> Iterator[Row]:
    layers = tuple(range(count))
    block, hidden, wide = f"{stack}.block.{{layer}}", dims.hidden_size, dims.intermediate_size
    into, out = (dims.q_width, hidden), (hidden, dims.q_width)
    attn = f"{block}.layer.0.SelfAttention"
    for role, name, shape in ((Role.Q, "q", into), (Role.K, "k", into), (Role.V, "v", into), (Role.O, "o", out)):
        yield from linear(dims, role, f"{attn}.{name}", shape, layers=layers)
    buckets = (dims.relative_buckets, dims.num_heads)
    yield table(dims, Role.POSITION, f"{attn}.relative_attention_bias", buckets, layers=(0,))
    yield from norm(dims, f"{block}.layer.0.layer_norm", hidden, layers=layers)
    feed_forward = 1
    if stack == "decoder":
        feed_forward = 2
        cross = f"{block}.layer.1.EncDecAttention"
        roles = (
            (Role.CROSS_Q, "q", into),
            (Role.CROSS_K, "k", into),
            (Role.CROSS_V, "v", into),
            (Role.CROSS_O, "o", out),
        )
        for role, name, shape in roles:
            yield from linear(dims, role, f"{cross}.{name}", shape, layers=layers)
        yield from norm(dims, f"{block}.layer.1.layer_norm", hidden, layers=layers)
    dense = f"{block}.layer.{feed_forward}.DenseReluDense"
    inner = ((Role.GATE, "wi_0"), (Role.UP, "wi_1")) if dims.gated else ((Role.UP, "wi"),)
    for role, name in inner:
        yield from linear(dims, role, f"{dense}.{name}", (wide, hidden), layers=layers)
    # In float16 transformers keeps these in float32: T5's feed-forward overflows otherwise.
    down = dims.with_dtype("float32") if dims.dtype == "float16" else dims
    yield from linear(down, Role.DOWN, f"{dense}.wo", (hidden, wide), layers=layers)
    yield from norm(dims, f"{block}.layer.{feed_forward}.layer_norm", hidden, layers=layers)
    yield from norm(dims, f"{stack}.final_layer_norm", hidden)
