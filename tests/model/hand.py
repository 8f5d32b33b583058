"""Forward passes of every family, written out over an anatomy's matrices: what transformers computes, by hand.

Only norms are run as modules. Shapes: x (B, S, H), q (B, heads, S, D), scores (B, heads, S, S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.core.roles import Role
from hayless.model.anatomy import Anatomy, split_qkv

_ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Parts:
    """Matrices and biases of one model by role and layer, norms by the end of their name."""

    def __init__(self, anatomy: Anatomy, stack: str = "") -> None:
        self.anatomy = anatomy
        self.sites = [site for site in anatomy.sites if site.module_path.startswith(stack)]

    def find(self, role: Role, layer: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The one matrix or table of a role in a layer, and its bias if there is one."""
        found = [site for site in self.sites if site.row.role is role and site.layer == layer]
        (matrix,) = [site for site in found if len(site.row.shape) > 1]
        biases = [site.weight(self.anatomy.model) for site in found if len(site.row.shape) == 1]
        return self.anatomy.matrix(matrix), biases[0] if biases else None

    def linear(self, x: Tensor, role: Role, layer: int | None = None) -> Tensor:
        """x·Wᵀ + b."""
        return F.linear(x, *self.find(role, layer))

    def norm(self, x: Tensor, end: str, layer: int | None = None) -> Tensor:
        """The norm of a layer whose path ends so."""
        names = {s.module_path for s in self.sites if s.row.role is Role.NORM and s.layer == layer}
        (name,) = [name for name in names if f".{name}".endswith(f".{end}")]
        return self.anatomy.model.get_submodule(name)(x)

    def table(self, role: Role, ids: Tensor) -> Tensor:
        """Rows of an embedding."""
        return self.find(role)[0][ids]


def forward(anatomy: Anatomy, ids: Tensor) -> Tensor:
    """Logits (B, S, vocabulary) of tokens (B, S); T5 has them as the encoder's and the decoder's input."""
    return _FAMILIES[anatomy.dims.family](anatomy, ids)


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0, cap: float | None = None
) -> Tensor:
    """softmax(scale·QKᵀ + bias)V with grouped keys repeated, as (B, S, heads·D)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-1, -2) * scale
    scores = cap * torch.tanh(scores / cap) if cap else scores
    return (torch.softmax(scores + bias, dim=-1) @ v).transpose(1, 2).flatten(2)


def _causal(length: int) -> Tensor:
    return torch.full((length, length), -math.inf).triu(1)


def _rotate(x: Tensor, theta: float, width: int) -> Tensor:
    """Rotary positions on the first `width` numbers of each head, halves paired."""
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(0, width, 2) / width)
    turned, rest = x[..., :width], x[..., width:]
    a, b = turned.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def _llama(anatomy: Anatomy, ids: Tensor) -> Tensor:
    dims, config, parts = anatomy.dims, anatomy.model.config, Parts(anatomy)
    four = dims.norms_per_block == 4
    x = parts.table(Role.EMBEDDING, ids)
    if dims.model_type.startswith("gemma"):
        x = x * dims.hidden_size**0.5
    scale = getattr(config, "query_pre_attn_scalar", dims.head_dim) ** -0.5
    for layer in range(dims.num_layers):
        h = parts.norm(x, "input_layernorm", layer)
        q, k, v = (_heads(parts.linear(h, role, layer), heads) for role, heads in _grouped(anatomy))
        if dims.qk_norm:
            q, k = parts.norm(q, "q_norm", layer), parts.norm(k, "k_norm", layer)
        rope = config.rope_parameters
        theta = (rope if "rope_theta" in rope else rope[config.layer_types[layer]])["rope_theta"]
        q, k = _rotate(q, theta, dims.head_dim), _rotate(k, theta, dims.head_dim)
        cap = getattr(config, "attn_logit_softcapping", None)
        h = parts.linear(_attend(q, k, v, scale, _causal(ids.shape[1]), cap), Role.O, layer)
        x = x + (parts.norm(h, "post_attention_layernorm", layer) if four else h)
        h = parts.norm(x, "pre_feedforward_layernorm" if four else "post_attention_layernorm", layer)
        h = _experts(parts, h, layer) if dims.num_experts else _gated(parts, h, layer)
        x = x + (parts.norm(h, "post_feedforward_layernorm", layer) if four else h)
    logits = parts.linear(parts.norm(x, "model.norm"), Role.HEAD)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _grouped(anatomy: Anatomy) -> list[tuple[Role, int]]:
    dims = anatomy.dims
    return [(Role.Q, dims.num_heads), (Role.K, dims.num_kv_heads), (Role.V, dims.num_kv_heads)]


def _gated(parts: Parts, h: Tensor, layer: int) -> Tensor:
    act = _ACTIVATIONS[parts.anatomy.dims.activation]
    return parts.linear(act(parts.linear(h, Role.GATE, layer)) * parts.linear(h, Role.UP, layer), Role.DOWN, layer)


def _experts(parts: Parts, h: Tensor, layer: int) -> Tensor:
    dims, config = parts.anatomy.dims, parts.anatomy.model.config
    act = _ACTIVATIONS[dims.activation]
    weights, chosen = torch.softmax(parts.linear(h, Role.ROUTER, layer), dim=-1).topk(dims.experts_per_token)
    if getattr(config, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdim=True)
    share = torch.zeros(*h.shape[:-1], dims.num_experts).scatter(-1, chosen, weights)
    out = torch.zeros_like(h)
    for expert, (gate_up, down) in enumerate(
        zip(parts.find(Role.GATE_UP, layer)[0], parts.find(Role.DOWN, layer)[0], strict=True)
    ):
        gate, up = (h @ gate_up.T).chunk(2, dim=-1)
        out += share[..., expert, None] * ((act(gate) * up) @ down.T)
    return out


def _fused(parts: Parts, h: Tensor, layer: int) -> list[Tensor]:
    """q, k, v (B, heads, S, D) of a fused projection."""
    dims = parts.anatomy.dims
    weight, bias = parts.find(Role.QKV, layer)
    biases = split_qkv(dims, bias)
    return [_heads(F.linear(h, w, b), dims.num_heads) for w, b in zip(split_qkv(dims, weight), biases, strict=True)]


def _up_down(parts: Parts, h: Tensor, layer: int) -> Tensor:
    act = _ACTIVATIONS[parts.anatomy.dims.activation]
    return parts.linear(act(parts.linear(h, Role.UP, layer)), Role.DOWN, layer)


def _gpt2(anatomy: Anatomy, ids: Tensor) -> Tensor:
    dims, parts = anatomy.dims, Parts(anatomy)
    x = parts.table(Role.EMBEDDING, ids) + parts.table(Role.POSITION, torch.arange(ids.shape[1]))
    for layer in range(dims.num_layers):
        q, k, v = _fused(parts, parts.norm(x, "ln_1", layer), layer)
        x = x + parts.linear(_attend(q, k, v, dims.head_dim**-0.5, _causal(ids.shape[1])), Role.O, layer)
        x = x + _up_down(parts, parts.norm(x, "ln_2", layer), layer)
    return parts.linear(parts.norm(x, "ln_f"), Role.HEAD)


def _gpt_neox(anatomy: Anatomy, ids: Tensor) -> Tensor:
    dims, parts = anatomy.dims, Parts(anatomy)
    width = int(dims.head_dim * dims.rotary_share)
    theta = anatomy.model.config.rope_parameters["rope_theta"]
    x = parts.table(Role.EMBEDDING, ids)
    for layer in range(dims.num_layers):
        q, k, v = _fused(parts, parts.norm(x, "input_layernorm", layer), layer)
        q, k = _rotate(q, theta, width), _rotate(k, theta, width)
        h = parts.linear(_attend(q, k, v, dims.head_dim**-0.5, _causal(ids.shape[1])), Role.O, layer)
        beside = x if dims.parallel_residual else x + h
        x = x + h + _up_down(parts, parts.norm(beside, "post_attention_layernorm", layer), layer)
    return parts.linear(parts.norm(x, "final_layer_norm"), Role.HEAD)


def _opt(anatomy: Anatomy, ids: Tensor) -> Tensor:
    dims, parts = anatomy.dims, Parts(anatomy)
    x = parts.table(Role.EMBEDDING, ids)
    narrow = dims.embedding_width != dims.hidden_size
    x = parts.linear(x, Role.PROJECT_IN) if narrow else x
    x = x + parts.table(Role.POSITION, torch.arange(ids.shape[1]) + 2)
    for layer in range(dims.num_layers):
        h = parts.norm(x, "self_attn_layer_norm", layer) if dims.norm_first else x
        q, k, v = (_heads(parts.linear(h, role, layer), heads) for role, heads in _grouped(anatomy))
        x = x + parts.linear(_attend(q, k, v, dims.head_dim**-0.5, _causal(ids.shape[1])), Role.O, layer)
        x = x if dims.norm_first else parts.norm(x, "self_attn_layer_norm", layer)
        x = x + _up_down(parts, parts.norm(x, "final_layer_norm", layer) if dims.norm_first else x, layer)
        x = x if dims.norm_first else parts.norm(x, "final_layer_norm", layer)
    x = anatomy.final_norm(x) if anatomy.final_norm else x
    return parts.linear(parts.linear(x, Role.PROJECT_OUT) if narrow else x, Role.HEAD)


def _bert(anatomy: Anatomy, ids: Tensor) -> Tensor:
    dims, parts = anatomy.dims, Parts(anatomy)
    x = parts.table(Role.EMBEDDING, ids) + parts.table(Role.POSITION, torch.arange(ids.shape[1]))
    x = parts.norm(x + parts.table(Role.TOKEN_TYPE, torch.zeros_like(ids)), "embeddings.LayerNorm")
    for layer in range(dims.num_layers):
        q, k, v = (_heads(parts.linear(x, role, layer), heads) for role, heads in _grouped(anatomy))
        h = parts.linear(_attend(q, k, v, dims.head_dim**-0.5), Role.O, layer)
        x = parts.norm(x + h, "attention.output.LayerNorm", layer)
        x = parts.norm(x + _up_down(parts, x, layer), f"{layer}.output.LayerNorm", layer)
    h = _ACTIVATIONS[dims.activation](parts.linear(x, Role.HEAD_TRANSFORM))
    return parts.linear(parts.norm(h, "transform.LayerNorm"), Role.HEAD)


def _t5(anatomy: Anatomy, ids: Tensor) -> Tensor:
    dims = anatomy.dims
    x = Parts(anatomy).table(Role.EMBEDDING, ids)
    encoded = _t5_stack(anatomy, x, "encoder", dims.encoder_layers, None)
    decoded = _t5_stack(anatomy, x, "decoder", dims.num_layers, encoded)
    scaled = decoded * dims.hidden_size**-0.5 if dims.tied_embeddings else decoded
    return Parts(anatomy).linear(scaled, Role.HEAD)


def _t5_stack(anatomy: Anatomy, x: Tensor, stack: str, layers: int, encoded: Tensor | None) -> Tensor:
    dims, parts = anatomy.dims, Parts(anatomy, stack)
    act = _ACTIVATIONS[dims.activation]
    decoder = encoded is not None
    # The first block's table serves all blocks of a stack.
    bias = parts.find(Role.POSITION, 0)[0][_distances(x.shape[1], decoder, dims.relative_buckets)].permute(2, 0, 1)
    bias = bias + _causal(x.shape[1]) if decoder else bias
    cross = (Role.CROSS_Q, Role.CROSS_K, Role.CROSS_V, Role.CROSS_O)
    for layer in range(layers):
        h = parts.norm(x, "layer.0.layer_norm", layer)
        q, k, v = (_heads(parts.linear(h, role, layer), dims.num_heads) for role in (Role.Q, Role.K, Role.V))
        x = x + parts.linear(_attend(q, k, v, 1.0, bias), Role.O, layer)
        if encoded is not None:
            h = parts.norm(x, "layer.1.layer_norm", layer)
            pairs = zip(cross[:3], (h, encoded, encoded), strict=True)
            q, k, v = (_heads(parts.linear(source, role, layer), dims.num_heads) for role, source in pairs)
            x = x + parts.linear(_attend(q, k, v, 1.0), Role.CROSS_O, layer)
        h = parts.norm(x, f"layer.{1 + decoder}.layer_norm", layer)
        wide = act(parts.linear(h, Role.GATE, layer)) * parts.linear(h, Role.UP, layer) if dims.gated else None
        x = x + (parts.linear(wide, Role.DOWN, layer) if wide is not None else _up_down(parts, h, layer))
    return parts.norm(x, "final_layer_norm")


def _distances(length: int, decoder: bool, buckets: int) -> Tensor:
    """T5's bucket (S, S) of each key's distance from each query: near ones exact, far ones in growing steps to 128."""
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    start = torch.zeros_like(distance)
    if decoder:
        distance = -distance.clamp(max=0)
    else:
        buckets //= 2
        start, distance = (distance > 0) * buckets, distance.abs()
    exact = buckets // 2
    far = exact + (torch.log(distance.clamp(min=1) / exact) / math.log(128 / exact) * (buckets - exact)).long()
    return start + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


_FAMILIES = {
    "llama": _llama,
    "mixtral": _llama,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bert": _bert,
    "t5": _t5,
}
