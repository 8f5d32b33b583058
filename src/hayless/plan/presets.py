"""Known models by short names, as the configs their makers published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hayless.core.errors import unknown


def _llama(layers: int, width: int, heads: int, wide: int, kv_heads: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "intermediate_size": wide,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
        **more,
    }


def _qwen(layers: int, width: int, heads: int, kv_heads: int, wide: int, *, tied: bool) -> dict[str, Any]:
    tables = {"vocab_size": 151936 if tied else 152064, "tie_word_embeddings": tied}
    return _llama(layers, width, heads, wide, kv_heads, model_type="qwen2", max_position_embeddings=32768, **tables)


def _opt(layers: int, heads: int, width: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "dtype": "float16",
        **more,
    }


def _gpt2(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50257,
        "dtype": "bfloat16",
    }


_LLAMA_3: dict[str, Any] = {"vocab_size": 128256}

PRESETS: Mapping[str, dict[str, Any]] = {
    "llama-7b": _llama(32, 4096, 32, 11008, max_position_embeddings=2048),
    "llama-13b": _llama(40, 5120, 40, 13824, max_position_embeddings=2048),
    "llama-65b": _llama(80, 8192, 64, 22016, max_position_embeddings=2048),
    "llama-2-70b": _llama(80, 8192, 64, 28672, 8),
    "llama-3-8b": _llama(32, 4096, 32, 14336, 8, max_position_embeddings=8192, **_LLAMA_3),
    "llama-3-70b": _llama(80, 8192, 64, 28672, 8, max_position_embeddings=8192, **_LLAMA_3),
    "llama-3-405b": _llama(126, 16384, 128, 53248, 8, max_position_embeddings=131072, **_LLAMA_3),
    "llama-3b": _llama(28, 3072, 24, 8192, 8, max_position_embeddings=131072, tie_word_embeddings=True, **_LLAMA_3),
    "llama-1b": _llama(16, 2048, 32, 8192, 8, max_position_embeddings=131072, tie_word_embeddings=True, **_LLAMA_3),
    "opt-125m": _opt(12, 12, 768),
    "opt-350m": _opt(24, 16, 1024, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(24, 32, 2048),
    "opt-2.7b": _opt(32, 32, 2560),
    "opt-6.7b": _opt(32, 32, 4096),
    "opt-13b": _opt(40, 40, 5120),
    "opt-30b": _opt(48, 56, 7168),
    "opt-66b": _opt(64, 72, 9216),
    "opt-175b": _opt(96, 96, 12288),
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "qwen2-0.5b": _qwen(24, 896, 14, 2, 4864, tied=True),
    "qwen2-1.5b": _qwen(28, 1536, 12, 2, 8960, tied=True),
    "qwen2-7b": _qwen(28, 3584, 28, 4, 18944, tied=False),
    "qwen2-72b": _qwen(80, 8192, 64, 8, 29568, tied=False),
    "qwen2.5-3b": _qwen(36, 2048, 16, 2, 11008, tied=True),
    "qwen2.5-14b": _qwen(48, 5120, 40, 8, 13824, tied=False),
    "qwen2.5-32b": _qwen(64, 5120, 40, 8, 27648, tied=False),
}
"""Short name → config, as far as shapes depend on it."""


def config_of(name: str) -> dict[str, Any]:
    """The config of a preset; RequestError names all there are."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
