"""Run folders as the executor leaves them, made without running anything: whole ones and broken ones."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from hayless.core.measurement import Machine, Measurement
from hayless.recipe import yaml

MACHINE = Machine(
    processor="Example CPU", cores=2, memory_bytes=8 * 10**9, python="3.11.7", versions={"torch": "2.13.0"}
)


def recipe(name: str, apply: dict[str, Any] | None = None, tokens: int = 1_000_000) -> dict[str, Any]:
    """A recipe as plain data: an optional change of the model, then training and measuring."""
    steps: list[Any] = [{"apply": apply}] if apply else []
    steps += [
        {"train": {"tokens": tokens, "objective": {"method": "lm"}, "optimizer": {"method": "adamw"}}},
        {"measure": {}},
    ]
    return {"name": name, "model": {"path": "models/small"}, "data": {"sources": [{"path": "texts"}]}, "steps": steps}


def documents(bits: float, count: int = 40, noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Losses of `count` documents around `bits` per byte; `noise` is added to each on its own."""
    shape, own = random.Random(7), random.Random(seed)
    rows = []
    for number in range(count):
        size = 400 + 90 * number
        level = bits * (1 + 0.2 * shape.uniform(-1, 1)) + noise * own.gauss(0, 1)
        rows.append({"id": f"doc-{number}", "nats": level * size * math.log(2), "tokens": size // 4, "bytes": size})
    return rows


def bits_of(rows: list[dict[str, Any]]) -> float:
    """Bits per byte over all documents."""
    return sum(row["nats"] for row in rows) / math.log(2) / sum(row["bytes"] for row in rows)


def figures(bits: float, size: int, **more: float) -> list[Measurement]:
    """What a measured run has, the file's size predicted exactly and the peaks nearly."""
    speed, ms = more.get("speed", 8000), more.get("ms", 4.5)
    return [
        Measurement(name="loss", unit="nats/token", value=bits * 1.6, low=bits * 1.58, high=bits * 1.62),
        Measurement(name="bits_per_byte", unit="bits/byte", value=bits, low=bits - 0.02, high=bits + 0.02),
        Measurement(name="file_bytes", unit="bytes", value=size, predicted=size),
        Measurement(name="parameters", unit="parameters", value=size // 4, predicted=size // 4),
        Measurement(name="train_peak_bytes", unit="bytes", value=size * 6, predicted=size * 5.2),
        Measurement(name="decode_peak_bytes", unit="bytes", value=size * 1.9, predicted=size * 2.1),
        Measurement(name="train_tokens_per_second", unit="tokens/s", value=speed, low=speed * 0.98, high=speed * 1.01),
        Measurement(name="train_seconds", unit="s", value=75.0),
        Measurement(name="first_token_seconds", unit="s", value=0.012, low=0.011, high=0.015),
        Measurement(name="ms_per_token", unit="ms/token", value=ms, low=ms * 0.97, high=ms * 1.05),
        Measurement(
            name="joules_per_token",
            unit="J/token",
            value=more.get("joules"),
            note="" if "joules" in more else "this machine does not report energy",
            better="lower",
        ),
    ]


def run(
    folder: Path,
    name: str | None = None,
    *,
    bits: float = 2.0,
    size: int = 4_000_000,
    state: str = "done",
    reason: str = "",
    apply: dict[str, Any] | None = None,
    seed: int = 0,
    steps: int = 200,
    **more: float,
) -> Path:
    """Write the folder of one run and return it."""
    name = name or folder.name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.write(recipe(name, apply)), encoding="utf-8")
    status: dict[str, Any] = {"state": state, "time": "2026-10-02T12:00:00+0000", "seconds": 81.2}
    (folder / "status.json").write_text(json.dumps(status | ({"reason": reason} if reason else {})), encoding="utf-8")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for line in _metrics(bits, steps, seed):
            file.write(json.dumps(line) + "\n")
    if state == "done":
        rows = documents(bits, noise=0.02, seed=seed)
        (folder / "documents.json").write_text(json.dumps(rows), encoding="utf-8")
        measured = [row.model_dump(mode="json") for row in figures(bits_of(rows), size, **more)]
        content = {"machine": MACHINE.model_dump(), "date": "2026-10-02T12:01:00+00:00", "rows": measured}
        (folder / "measurements.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _metrics(bits: float, steps: int, seed: int) -> list[dict[str, Any]]:
    noise = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = bits * 1.6 + 5 * math.exp(-step / 40) + 0.05 * noise.gauss(0, 1)
        rate = 1e-3 * min(1.0, step / 20) * (1 - 0.8 * step / steps)
        more = {
            "learning_rate": rate,
            "gradient_norm": 1 + 3 / step,
            "tokens_per_second": 8000 + 100 * noise.gauss(0, 1),
        }
        lines.append({"kind": "train", "step": step, "loss": loss, **more})
        if step % 50 == 0:
            lines.append({"kind": "validation", "step": step, "loss": loss + 0.1})
            lines.append(
                {"kind": "sample", "step": step, "prompt": "def main(", "text": f"self, x):\n    return {step}"}
            )
    return lines
