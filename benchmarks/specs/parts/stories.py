"""The 260,032-parameter Llama of TinyStories, read from llama2.c's first checkpoint layout."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
import transformers
from torch import Tensor

_HEADER = struct.Struct("<7i")


def load_stories(path: Path) -> transformers.PreTrainedModel:
    """The checkpoint as a transformers model in float32, output matrix tied to the embedding."""
    raw = path.read_bytes()
    hidden, intermediate, layers, heads, kv_heads, entries, positions = _HEADER.unpack_from(raw)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=entries,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    base = model.model
    blocks = list(base.layers)
    # In the file's order; each layer's share of an array in turn.
    parameters = [base.embed_tokens.weight]
    for name in (
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
    ):
        parameters += [block.get_submodule(name).weight for block in blocks]
    parameters.append(base.norm.weight)
    values = torch.frombuffer(bytearray(raw), dtype=torch.float32, offset=_HEADER.size)
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(values[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
        for block in blocks:
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
                projection.weight.copy_(_halves(projection.weight, hidden // heads))
    return model


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rotated pairs (2i, 2i + 1) of a head to (i, i + head_dim/2), as transformers wants them."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
