"""Models that several works of a process share."""

from __future__ import annotations

import copy
from functools import cache, lru_cache
from pathlib import Path

import torch
import transformers
from parts.stories import load_stories

from hayless.study.bench.inputs import given

LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""Llama-3.2-1B's shape, with the vocabulary that makes its head a fifth of it."""

LLAMA_7B = {"model_type": "llama", "vocab_size": 32_000, "max_position_embeddings": 16_384}
"""Llama-7B's shape, which transformers has as its defaults, with room for 16k tokens."""


@cache
def llama_7b() -> transformers.PreTrainedModel:
    """Llama-7B's shape with random weights in bf16, made on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = transformers.AutoConfig.for_model(**LLAMA_7B)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def trained_folder(name: str) -> Path:
    """The folder of the trained model `name`, target or draft."""
    return given("models", "a folder with two trained Llamas that share a tokenizer, target/ and draft/") / name


@cache
def trained(name: str, dtype: torch.dtype, device: str) -> transformers.PreTrainedModel:
    """The trained model `name`."""
    found = transformers.AutoModelForCausalLM.from_pretrained(trained_folder(name), dtype=dtype)
    return found.to(device).eval()


@cache
def stories() -> transformers.PreTrainedModel:
    """The Llama of TinyStories in float32, on the CPU."""
    return load_stories(given("stories", "llama2.c's checkpoint of TinyStories, 260,032 parameters, first layout"))


@lru_cache(maxsize=1)
def in_float32(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """A copy of the model in float32, or the model itself where it is that already."""
    return model if model.dtype is torch.float32 else copy.deepcopy(model).float()
