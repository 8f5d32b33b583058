"""Small recipes that run in a second, and what their tests share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from hayless.recipe.execute import Run, run
from hayless.recipe.load import load
from hayless.recipe.schema import Recipe
from tests.data import made

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TRAIN = {"steps": 4, "batch_size": 2, "sequence_length": 24, "log_every": 1, "validation_tokens": 200}


def recipe(folder: Path, *steps: Any, **more: Any) -> Recipe:
    """A recipe over a small corpus and a new model."""
    texts = folder / "texts" / "prose"
    if not texts.exists():
        made.texts(folder / "texts", [40, 60, 30, 50, 70, 20])
    content = {
        "name": "tried",
        "model": {"config": CONFIG, "tokenizer": {"level": "bpe", "vocab_size": 300}},
        "data": {"sources": [{"path": str(texts)}], "heldout": 0.3},
        "device": "cpu",
        "steps": list(steps) or [{"train": TRAIN}],
    }
    return load({**content, **more})


def quietly(wanted: Recipe, folder: Path, **more: Any) -> tuple[Run, str]:
    """The run and what it said."""
    said = io.StringIO()
    done = run(wanted, folder, console=Console(file=said, width=200), **more)
    return done, said.getvalue()
