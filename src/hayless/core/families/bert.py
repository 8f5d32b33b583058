"""BERT with its masked-language-model head: for the techniques that are about encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hayless.core.dims import ModelDims, head_width, required, share
from hayless.core.families.building import Paths, config_dtype, head, linear, norm, table
from hayless.core.ledger import Layout, Row
from hayless.core.roles import Role

PATHS = Paths(
    "bert.embeddings.word_embeddings",
    "bert.encoder.layer",
    "cls.predictions.decoder",
    position="bert.embeddings.position_embeddings",
)


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json."""
    hidden, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    return ModelDims(
        family="bert",
        model_type="bert",
        vocab_size=required(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=required(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width({}, hidden, heads),
        intermediate_size=required(config, "intermediate_size"),
        max_positions=required(config, "max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        dtype=config_dtype(config),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        final_norm=False,
        token_types=int(config.get("type_vocab_size", 2)),
        activation=str(config.get("hidden_act", "gelu")),
        norm_first=False,
        dropout=share(config, "hidden_dropout_prob", 0.1),
        attention_dropout=share(config, "attention_probs_dropout_prob", 0.1),
    )


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    layers = tuple(range(dims.num_layers))
    layer, hidden, wide = "bert.encoder.layer.{layer}", dims.hidden_size, dims.intermediate_size
    yield table(dims, Role.EMBEDDING, PATHS.embedding, (dims.vocab_size, hidden))
    yield table(dims, Role.POSITION, "bert.embeddings.position_embeddings", (dims.max_positions, hidden))
    yield table(dims, Role.TOKEN_TYPE, "bert.embeddings.token_type_embeddings", (dims.token_types, hidden))
    yield from norm(dims, "bert.embeddings.LayerNorm", hidden, bias=True)
    attn = f"{layer}.attention"
    for role, name in ((Role.Q, "query"), (Role.K, "key"), (Role.V, "value")):
        yield from linear(dims, role, f"{attn}.self.{name}", (hidden, hidden), layers=layers, bias=True)
    yield from linear(dims, Role.O, f"{attn}.output.dense", (hidden, hidden), layers=layers, bias=True)
    yield from norm(dims, f"{attn}.output.LayerNorm", hidden, layers=layers, bias=True)
    yield from linear(dims, Role.UP, f"{layer}.intermediate.dense", (wide, hidden), layers=layers, bias=True)
    yield from linear(dims, Role.DOWN, f"{layer}.output.dense", (hidden, wide), layers=layers, bias=True)
    yield from norm(dims, f"{layer}.output.LayerNorm", hidden, layers=layers, bias=True)
    yield Row(Role.HEAD, "cls.predictions", "bias", (dims.vocab_size,), dims.dtype, Layout.VECTOR)
    yield from linear(dims, Role.HEAD_TRANSFORM, "cls.predictions.transform.dense", (hidden, hidden), bias=True)
    yield from norm(dims, "cls.predictions.transform.LayerNorm", hidden, bias=True)
    yield from head(dims, PATHS.embedding, hidden, module=PATHS.head)
