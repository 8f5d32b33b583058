"""GPT-NeoX (Pythia): fused q, k, v interleaved by head, attention and feed-forward in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hayless.core.dims import ModelDims, head_width, required, share
from hayless.core.families.building import Paths, config_dtype, head, linear, norm, table
from hayless.core.ledger import Row
from hayless.core.roles import Role

PATHS = Paths(
    "gpt_neox.embed_in",
    "gpt_neox.layers",
    "lm_head",
    final_norm="gpt_neox.final_layer_norm",
    rotary="gpt_neox.rotary_emb",
)


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json."""
    hidden, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    bias = bool(config.get("attention_bias", True))
    return ModelDims(
        family="gpt_neox",
        model_type="gpt_neox",
        vocab_size=required(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=required(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width({}, hidden, heads),
        intermediate_size=required(config, "intermediate_size"),
        max_positions=int(config.get("max_position_embeddings") or 0),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=config_dtype(config),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
        activation=str(config.get("hidden_act", "gelu")),
        parallel_residual=bool(config.get("use_parallel_residual", True)),
        rotary_share=_rotary_share(config),
        dropout=share(config, "hidden_dropout", 0.0),
        attention_dropout=share(config, "attention_dropout", 0.0),
    )


def _rotary_share(config: Mapping[str, Any]) -> float:
    """How much of each head turns; transformers 5 keeps it in `rope_parameters`, older files in `rotary_pct`."""
    return share(config.get("rope_parameters") or {}, "partial_rotary_factor", share(config, "rotary_pct", 0.25))


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    layers = tuple(range(dims.num_layers))
    layer, hidden, wide = "gpt_neox.layers.{layer}", dims.hidden_size, dims.intermediate_size
    yield table(dims, Role.EMBEDDING, PATHS.embedding, (dims.vocab_size, hidden))
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from norm(dims, f"{layer}.{name}", hidden, layers=layers, bias=True)
    attn = f"{layer}.attention"
    yield from linear(
        dims, Role.QKV, f"{attn}.query_key_value", (3 * hidden, hidden), layers=layers, bias=dims.qkv_bias
    )
    yield from linear(dims, Role.O, f"{attn}.dense", (hidden, hidden), layers=layers, bias=dims.o_bias)
    yield from linear(dims, Role.UP, f"{layer}.mlp.dense_h_to_4h", (wide, hidden), layers=layers, bias=True)
    yield from linear(dims, Role.DOWN, f"{layer}.mlp.dense_4h_to_h", (hidden, wide), layers=layers, bias=True)
    yield from norm(dims, "gpt_neox.final_layer_norm", hidden, bias=True)
    yield from head(dims, PATHS.embedding, hidden, disk_module="embed_out")
