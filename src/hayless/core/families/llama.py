"""Llama's layout: Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3 (text)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hayless.core.dims import ModelDims, head_width, required, share
from hayless.core.families.building import Paths, config_dtype, head, linear, norm, table
from hayless.core.ledger import Row
from hayless.core.roles import Role

PATHS = Paths("model.embed_tokens", "model.layers", "lm_head", final_norm="model.norm", rotary="model.rotary_emb")
LAYER = "model.layers.{layer}"
_TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3_text"}
_QK_NORM = {"qwen3", "gemma3_text"}
_FOUR_NORMS = {"gemma2", "gemma3_text"}


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json."""
    model_type = config["model_type"]
    hidden, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    bias = bool(config.get("attention_bias", False))
    return ModelDims(
        family="llama",
        model_type=model_type,
        vocab_size=required(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=required(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_width(config, hidden, heads),
        intermediate_size=required(config, "intermediate_size"),
        max_positions=int(config.get("max_position_embeddings") or 0),
        tied_embeddings=bool(config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT)),
        dtype=config_dtype(config),
        gated=True,
        qkv_bias=True if model_type == "qwen2" else bias,
        o_bias=False if model_type == "qwen2" else bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=model_type in _QK_NORM,
        norms_per_block=4 if model_type in _FOUR_NORMS else 2,
        activation=str(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
        attention_dropout=share(config, "attention_dropout", 0.0),
    )


def attention_rows(dims: ModelDims) -> Iterator[Row]:
    """q, k, v, o and the norms around attention; shared with the Mixtral family."""
    layers = tuple(range(dims.num_layers))
    attn = f"{LAYER}.self_attn"
    hidden = dims.hidden_size
    yield from linear(dims, Role.Q, f"{attn}.q_proj", (dims.q_width, hidden), layers=layers, bias=dims.qkv_bias)
    yield from linear(dims, Role.K, f"{attn}.k_proj", (dims.kv_width, hidden), layers=layers, bias=dims.qkv_bias)
    yield from linear(dims, Role.V, f"{attn}.v_proj", (dims.kv_width, hidden), layers=layers, bias=dims.qkv_bias)
    yield from linear(dims, Role.O, f"{attn}.o_proj", (hidden, dims.q_width), layers=layers, bias=dims.o_bias)
    if dims.qk_norm:
        yield from norm(dims, f"{attn}.q_norm", dims.head_dim, layers=layers)
        yield from norm(dims, f"{attn}.k_norm", dims.head_dim, layers=layers)
    names = ["input_layernorm", "post_attention_layernorm"]
    if dims.norms_per_block == 4:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for name in names:
        yield from norm(dims, f"{LAYER}.{name}", hidden, layers=layers)


def outer_rows(dims: ModelDims) -> Iterator[Row]:
    """Embedding, last norm and head; shared with the Mixtral family."""
    yield table(dims, Role.EMBEDDING, PATHS.embedding, (dims.vocab_size, dims.hidden_size))
    yield from norm(dims, "model.norm", dims.hidden_size)
    yield from head(dims, PATHS.embedding, dims.hidden_size)


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    layers = tuple(range(dims.num_layers))
    yield from outer_rows(dims)
    yield from attention_rows(dims)
    wide, hidden = dims.intermediate_size, dims.hidden_size
    yield from linear(dims, Role.GATE, f"{LAYER}.mlp.gate_proj", (wide, hidden), layers=layers, bias=dims.mlp_bias)
    yield from linear(dims, Role.UP, f"{LAYER}.mlp.up_proj", (wide, hidden), layers=layers, bias=dims.mlp_bias)
    yield from linear(dims, Role.DOWN, f"{LAYER}.mlp.down_proj", (hidden, wide), layers=layers, bias=dims.mlp_bias)
