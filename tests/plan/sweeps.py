"""Folders of finished runs as `hayless compare` leaves them, their losses given by a law."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hayless.plan.scaling import Parametric
from hayless.recipe import yaml

LAW = Parametric(0.8, 60.0, 300.0, 0.35, 0.4)
WIDTHS = (32, 48, 64, 96, 128)
TOKENS = (300_000, 600_000, 1_200_000, 2_400_000)


def config(width: int, layers: int = 2) -> dict[str, Any]:
    """A Llama of a width and a depth, its vocabulary left to the tokenizer."""
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    return {"model_type": "llama", **shape, "num_attention_heads": 2, "max_position_embeddings": 128}


def run(
    folder: Path,
    shape: dict[str, Any],
    tokens: int,
    loss: float | None,
    *,
    vocabulary: int = 512,
    text: str = "texts",
    document_tokens: int = 700,
    **more: Any,
) -> Path:
    """The folder of a run; `more` goes into its recipe."""
    training = folder / "checkpoints" / "step-0"
    training.mkdir(parents=True)
    recipe = {
        "name": "run",
        "model": {"config": shape, "tokenizer": {"level": "bpe", "vocab_size": vocabulary}},
        "data": {"sources": [{"path": text}]},
        "steps": [{"train": {"tokens": tokens}}, {"measure": {}}],
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.write(recipe), encoding="utf-8")
    lines = [{"kind": "train", "step": step, "tokens": tokens * step // 2, "loss": 5.0} for step in (1, 2)]
    lines.append({"kind": "validation", "step": 2, "loss": 5.0})
    (training / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    documents = [{"id": "one", "nats": 100.0, "tokens": document_tokens, "bytes": 1800}]
    rows = [{"name": "loss", "unit": "nats/token", "value": loss}]
    for name, content in (
        ("status.json", {"state": "done"}),
        ("measurements.json", {"rows": rows}),
        ("documents.json", documents),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
