"""The shape of the demo's models, from the demo itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hayless.study import demo


def config(label: str) -> dict[str, Any]:
    """The config of the demo's model `label`, `target` or `draft`, with its vocabulary, for transformers."""
    study = demo.study(Path("demo"))
    model = next(row for row in study.rows if row.label == label).recipe["model"]
    return {**model["config"], "vocab_size": model["tokenizer"]["vocab_size"], "bos_token_id": 0, "eos_token_id": 0}
