"""GPT-2: fused q, k, v in Conv1D modules, whose weights lie as (in, out)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hayless.core.dims import ModelDims, head_width, required, share
from hayless.core.families.building import Paths, config_dtype, head, linear, norm, table
from hayless.core.ledger import Layout, Row
from hayless.core.roles import Role

PATHS = Paths("transformer.wte", "transformer.h", "lm_head", final_norm="transformer.ln_f", position="transformer.wpe")


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json."""
    hidden, heads = required(config, "n_embd"), required(config, "n_head")
    return ModelDims(
        family="gpt2",
        model_type="gpt2",
        vocab_size=required(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=required(config, "n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width({}, hidden, heads),
        intermediate_size=int(config.get("n_inner") or 4 * hidden),
        max_positions=required(config, "n_positions"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        dtype=config_dtype(config),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        activation=str(config.get("activation_function", "gelu_new")),
        dropout=share(config, "resid_pdrop", 0.1),
        attention_dropout=share(config, "attn_pdrop", 0.1),
    )


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    layers = tuple(range(dims.num_layers))
    layer, hidden, wide = "transformer.h.{layer}", dims.hidden_size, dims.intermediate_size
    conv = Layout.CONV1D
    yield table(dims, Role.EMBEDDING, PATHS.embedding, (dims.vocab_size, hidden))
    yield table(dims, Role.POSITION, "transformer.wpe", (dims.max_positions, hidden))
    yield from norm(dims, f"{layer}.ln_1", hidden, layers=layers, bias=True)
    yield from linear(
        dims, Role.QKV, f"{layer}.attn.c_attn", (3 * hidden, hidden), layers=layers, bias=True, layout=conv
    )
    yield from linear(dims, Role.O, f"{layer}.attn.c_proj", (hidden, hidden), layers=layers, bias=True, layout=conv)
    yield from norm(dims, f"{layer}.ln_2", hidden, layers=layers, bias=True)
    yield from linear(dims, Role.UP, f"{layer}.mlp.c_fc", (wide, hidden), layers=layers, bias=True, layout=conv)
    yield from linear(dims, Role.DOWN, f"{layer}.mlp.c_proj", (hidden, wide), layers=layers, bias=True, layout=conv)
    yield from norm(dims, "transformer.ln_f", hidden, bias=True)
    yield from head(dims, PATHS.embedding, hidden)
