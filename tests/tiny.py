"""Tiny random models of every family, for tests that need a structure but nothing learnt."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2}


def config(name: str) -> transformers.PretrainedConfig:
    """The config of tiny model `name`, one of `NAMES`."""
    return _CONFIGS[name]()


_CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "llama-tied": lambda: transformers.LlamaConfig(
        **_GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED, head_dim=16),
    "gemma": lambda: transformers.GemmaConfig(**_GROUPED, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**_GROUPED, head_dim=16, query_pre_attn_scalar=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GROUPED, head_dim=16, query_pre_attn_scalar=16),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1, pad_token_id=2
    ),
    "opt": lambda: transformers.OPTConfig(**_SHAPE, ffn_dim=48, word_embed_proj_dim=32),
    "opt-350m": lambda: transformers.OPTConfig(
        **_SHAPE, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SHAPE),
    "gpt_neox-tied": lambda: transformers.GPTNeoXConfig(
        **_SHAPE, tie_word_embeddings=True, use_parallel_residual=False
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_GROUPED, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_GROUPED, num_experts=4, moe_intermediate_size=24, num_experts_per_tok=2, head_dim=16
    ),
    "bert": lambda: transformers.BertConfig(**_SHAPE),
    "t5": lambda: transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    "t5-gated": lambda: transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    ),
}

NAMES = tuple(_CONFIGS)
CAUSAL = tuple(name for name in NAMES if not name.startswith(("bert", "t5")))


def model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """Tiny model `name` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    found = config(name)
    if name.startswith("bert"):
        built = transformers.BertForMaskedLM(found)
    elif name.startswith("t5"):
        built = transformers.T5ForConditionalGeneration(found)
    else:
        built = transformers.AutoModelForCausalLM.from_config(found)
    return built.eval()
