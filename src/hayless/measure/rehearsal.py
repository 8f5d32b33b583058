"""A toy run of what is about to be measured, so that what libraries set up on first use is not taken for the model's
memory or time."""

from __future__ import annotations

import tempfile

import torch
import transformers

from hayless.measure.speed import decode_speed, train_speed
from hayless.model.load import load_model


def rehearse_decoding(device: torch.device | str) -> None:
    """Load and run a toy."""
    with tempfile.TemporaryDirectory(prefix="hayless-") as folder:
        _toy().save_pretrained(folder)
        decode_speed(load_model(folder, device=device), [[1, 2]], tokens=4, repeats=1)


def rehearse_training(device: torch.device | str) -> None:
    """Train a toy for a few bare steps."""
    train_speed(_toy().to(torch.device(device)), torch.ones(1, 8, dtype=torch.long), steps=1)  # type: ignore[arg-type]


def _toy() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)
