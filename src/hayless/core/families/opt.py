"""OPT: learned positions with an offset of 2; the 350M model has narrow embeddings and norms after each sublayer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hayless.core.dims import ModelDims, head_width, required, share
from hayless.core.errors import NotSupported
from hayless.core.families.building import Paths, config_dtype, head, linear, norm, table
from hayless.core.ledger import Row
from hayless.core.roles import Role

PATHS = Paths(
    "model.decoder.embed_tokens",
    "model.decoder.layers",
    "lm_head",
    final_norm="model.decoder.final_layer_norm",
    position="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
)
POSITION_OFFSET = 2


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json."""
    if config.get("layer_norm_elementwise_affine", True) is False:
        raise NotSupported("OPT models whose norms have no weights are not covered.")
    hidden, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    before = bool(config.get("do_layer_norm_before", True))
    bias = bool(config.get("enable_bias", True))
    return ModelDims(
        family="opt",
        model_type="opt",
        vocab_size=required(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=required(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width({}, hidden, heads),
        intermediate_size=required(config, "ffn_dim"),
        max_positions=required(config, "max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        dtype=config_dtype(config),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        final_norm=before and not config.get("_remove_final_layer_norm", False),
        embedding_size=int(config.get("word_embed_proj_dim") or hidden),
        activation=str(config.get("activation_function", "relu")),
        norm_first=before,
        dropout=share(config, "dropout", 0.1),
        attention_dropout=share(config, "attention_dropout", 0.0),
    )


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    layers = tuple(range(dims.num_layers))
    layer, hidden, wide, narrow = (
        "model.decoder.layers.{layer}",
        dims.hidden_size,
        dims.intermediate_size,
        dims.embedding_width,
    )
    yield table(dims, Role.EMBEDDING, PATHS.embedding, (dims.vocab_size, narrow))
    yield table(dims, Role.POSITION, "model.decoder.embed_positions", (dims.max_positions + POSITION_OFFSET, hidden))
    if narrow != hidden:
        yield from linear(dims, Role.PROJECT_OUT, "model.decoder.project_out", (narrow, hidden))
        yield from linear(dims, Role.PROJECT_IN, "model.decoder.project_in", (hidden, narrow))
    for role, name in ((Role.K, "k_proj"), (Role.V, "v_proj"), (Role.Q, "q_proj"), (Role.O, "out_proj")):
        yield from linear(dims, role, f"{layer}.self_attn.{name}", (hidden, hidden), layers=layers, bias=dims.qkv_bias)
    yield from norm(dims, f"{layer}.self_attn_layer_norm", hidden, layers=layers, bias=True)
    yield from linear(dims, Role.UP, f"{layer}.fc1", (wide, hidden), layers=layers, bias=dims.mlp_bias)
    yield from linear(dims, Role.DOWN, f"{layer}.fc2", (hidden, wide), layers=layers, bias=dims.mlp_bias)
    yield from norm(dims, f"{layer}.final_layer_norm", hidden, layers=layers, bias=True)
    if dims.final_norm:
        yield from norm(dims, "model.decoder.final_layer_norm", hidden, bias=True)
    yield from head(dims, PATHS.embedding, narrow)
