"""Mixtral and Qwen3-MoE: Llama's attention with stacked experts behind a router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hayless.core.dims import ModelDims, required
from hayless.core.errors import NotSupported
from hayless.core.families import llama
from hayless.core.families.building import experts, linear
from hayless.core.ledger import Row
from hayless.core.roles import Role

PATHS = llama.PATHS


def read(config: Mapping[str, Any]) -> ModelDims:
    """ModelDims from config.json; `intermediate_size` is the width of one expert."""
    if config["model_type"] == "qwen3_moe":
        if config.get("mlp_only_layers") or int(config.get("decoder_sparse_step", 1)) != 1:
            raise NotSupported(
                "This Qwen3-MoE mixes dense and expert layers (mlp_only_layers or decoder_sparse_step).",
                hint="Only models with experts in every layer are covered.",
            )
        wide = required(config, "moe_intermediate_size")
        count = required(config, "num_experts" if "num_experts" in config else "num_local_experts")
    else:
        wide, count = required(config, "intermediate_size"), required(config, "num_local_experts")
    dense = llama.read({**config, "intermediate_size": wide})
    return replace(
        dense,
        family="mixtral",
        num_experts=count,
        experts_per_token=int(config.get("num_experts_per_tok") or 2),
        qk_norm=config["model_type"] == "qwen3_moe",
    )


def rows(dims: ModelDims) -> Iterator[Row]:
    """Every parameter."""
    layers = tuple(range(dims.num_layers))
    yield from llama.outer_rows(dims)
    yield from llama.attention_rows(dims)
    mlp = f"{llama.LAYER}.mlp"
    if dims.model_type == "mixtral":
        disk = f"{llama.LAYER}.block_sparse_moe"
        router = f"{disk}.gate"
        gate_up = (f"{disk}.experts.{{expert}}.w1.weight", f"{disk}.experts.{{expert}}.w3.weight")
        down = (f"{disk}.experts.{{expert}}.w2.weight",)
    else:
        router = None
        gate_up = (f"{mlp}.experts.{{expert}}.gate_proj.weight", f"{mlp}.experts.{{expert}}.up_proj.weight")
        down = (f"{mlp}.experts.{{expert}}.down_proj.weight",)
    yield from linear(
        dims, Role.ROUTER, f"{mlp}.gate", (dims.num_experts, dims.hidden_size), layers=layers, disk_module=router
    )
    wide, hidden = dims.intermediate_size, dims.hidden_size
    yield experts(dims, Role.GATE_UP, f"{mlp}.experts", "gate_up_proj", (2 * wide, hidden), layers, gate_up)
    yield experts(dims, Role.DOWN, f"{mlp}.experts", "down_proj", (hidden, wide), layers, down)
