"""The demo: a small model trained on the interpreter's own library, and what each technique makes of it.

Two models are trained first, a target and a smaller draft. Then each row starts from the target, may spend the same
tokens of training, and is measured on the same held-out documents (those that learn instructions or preferences on
theirs, without a rank). Beside them stands what a model reaches that knows
nothing but how often each token occurs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hayless.core import atomic
from hayless.core.measurement import Measurement
from hayless.recipe.receipt import Receipt
from hayless.study.publish import publish
from hayless.study.record import Documents, RunRecord
from hayless.study.runner import run as run_study
from hayless.study.schema import Study, load
from hayless.study.table import Table

TARGET_TOKENS = 1_000_000
DRAFT_TOKENS = 500_000
BUDGET_TOKENS = 120_000
"""What a row may train on beyond the target."""
HELDOUT_TOKENS = 32_768

_CALIBRATION_TOKENS = 32_000
_CONTEXT = 128
"""Tokens of context, in training as in measuring: positions that were never trained would be measured as noise."""
_DATA = {"sources": [{"builtin": "stdlib"}]}
_MEASURE = {"measure": {"heldout_tokens": HELDOUT_TOKENS, "context": _CONTEXT}}
_PROMPTS = ["def main(", "The Python language"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting of one method: its row is in every demo if it is `first` of its family, in `--all` otherwise."""

    label: str
    family: str
    method: str
    steps: tuple[dict[str, Any], ...]
    first: bool = False
    data: str = "stdlib"
    """The builtin source it learns from and is measured on."""
    task: str = "causal"
    calibrated: bool = False
    """Whether it looks at text before it changes the model."""


def _apply(method: str, **options: Any) -> dict[str, Any]:
    return {"apply": {"method": method, **options}}


def _train(learning_rate: float = 5e-4, **settings: Any) -> dict[str, Any]:
    """Training within the budget, which decides its length."""
    optimizer = settings.pop("optimizer", {"method": "adamw", "learning_rate": learning_rate})
    length = {"tokens": BUDGET_TOKENS, "batch_size": 4, "sequence_length": _CONTEXT}
    return {"train": {**length, "optimizer": optimizer, **settings}}


ENTRIES = (
    Entry("more training", "optimizers", "adamw", (_train(),), first=True),
    Entry("more training, SGD", "optimizers", "sgd", (_train(optimizer={"method": "sgd", "learning_rate": 0.05}),)),
    *(
        Entry(f"more training, {label}", "optimizers", method, (_train(optimizer={"method": method, **options}),))
        for label, method, options in (
            ("AdamW in 8 bits", "adamw8bit", {"learning_rate": 5e-4}),
            ("AdamW in pages", "paged", {"learning_rate": 5e-4}),
            ("Adafactor", "adafactor", {"learning_rate": 1e-2}),
            ("LOMO", "lomo", {"learning_rate": 0.05}),
            ("AdaLomo", "adalomo", {"learning_rate": 1e-2}),
        )
    ),
    Entry("more training, checkpointing", "memory", "checkpointing", (_train(memory=["checkpointing"]),), first=True),
    *(
        Entry(f"more training, {label}", "memory", methods[-1], (_train(memory=methods),))
        for label, methods in (
            ("offload", ["checkpointing", "offload"]),
            ("loss by chunks", ["chunked_loss"]),
            ("fused kernels", ["fused_kernels"]),
        )
    ),
    Entry("LoRA rank 8", "adapters", "lora", (_apply("lora", rank=8), _train(2e-3)), first=True),
    Entry("mixture of 4 LoRAs", "adapters", "lora_moe", (_apply("lora_moe", rank=4), _train(2e-3))),
    Entry("bottlenecks of 16", "adapters", "bottleneck", (_apply("bottleneck", width=16), _train(2e-3))),
    Entry("IA³", "adapters", "ia3", (_apply("ia3"), _train(1e-2))),
    Entry("prefix of 8 tokens", "adapters", "prefix", (_apply("prefix", tokens=8, projection=64), _train(5e-3))),
    Entry("soft prompt of 8 tokens", "adapters", "prompt", (_apply("prompt", tokens=8), _train(1e-2))),
    Entry("k-means 4 bits", "quantize", "kmeans", (_apply("kmeans", bits=4),), first=True),
    Entry("nearest 4 bits", "quantize", "uniform", (_apply("uniform"),)),
    Entry("NF4", "quantize", "nf4", (_apply("nf4"),)),
    Entry("GPTQ 4 bits", "quantize", "gptq", (_apply("gptq"),), calibrated=True),
    Entry("AWQ 4 bits", "quantize", "awq", (_apply("awq"),), calibrated=True),
    Entry("LLM.int8()", "quantize", "int8", (_apply("int8"),)),
    Entry("8-bit floats", "quantize", "fp8", (_apply("fp8"),)),
    Entry("half the weights zero", "prune", "magnitude", (_apply("magnitude", sparsity=0.5), _train()), first=True),
    Entry("drafts from its own text", "decoding", "speculative", ({"decode": {"draft": "speculative"}},), first=True),
    Entry("cache of 4 bits", "decoding", "kv", ({"decode": {"cache": {"method": "kv", "residual": 32}}},)),
    Entry("tokens leave early", "decoding", "early_exit", ({"decode": {"exit": {"threshold": 0.5, "least": 1}}},)),
    Entry(
        "LayerSkip, first layer drafts",
        "objectives",
        "layerskip",
        (
            _train(objective={"method": "layerskip", "early_loss": 1.0, "every": 2}),
            {"decode": {"draft": {"method": "speculative", "draft": "self", "layers": 1}}},
        ),
    ),
    Entry("instructions", "objectives", "sft", (_train(1e-3, objective="sft"),), True, "stdlib_instructions"),
    Entry("reward", "objectives", "reward", (_train(1e-3, objective="reward"),), False, "stdlib_preferences", "reward"),
)
"""Later techniques add their rows here; `tests/study` holds that every method has one."""


def run(folder: Path, *, everything: bool = False, fresh: bool = False, console: Console | None = None) -> Table:
    """Run the demo in `folder`, write its page, plot and tables there, and return the table.

    What is done already is kept unless `fresh`. A row that fails is a row of the table with its reason.
    """
    console = console or Console(stderr=True)
    results = run_study(study(folder, everything=everything), fresh=fresh, console=console)
    results = replace(results, records=[*results.records, *_unigram(folder)])
    return publish(results, folder, picture=_palette(folder, fresh=fresh))


def study(folder: Path, *, everything: bool = False) -> Study:
    """The demo as a study."""
    target = str(folder / "target" / "model")
    rows = [
        {"label": "target", "recipe": _pretraining("target", 128, 4, TARGET_TOKENS), "budgeted": False},
        {"label": "draft", "recipe": _pretraining("draft", 64, 2, DRAFT_TOKENS), "budgeted": False},
        *(
            {"label": entry.label, "recipe": _from_target(target, entry)}
            for entry in ENTRIES
            if everything or entry.first
        ),
    ]
    return load(
        {"name": "demo", "rows": rows, "baseline": "target", "budget": {"tokens": BUDGET_TOKENS}, "folder": str(folder)}
    )


def _from_target(target: str, entry: Entry) -> dict[str, Any]:
    data = _DATA if entry.data == "stdlib" else {"sources": [{"builtin": entry.data}]}
    model = {"path": target, "task": entry.task}
    looked_at = {"calibration": {"tokens": _CALIBRATION_TOKENS}} if entry.calibrated else {}
    return {"name": "row", "model": model, "data": data, **looked_at, "steps": [*entry.steps, _MEASURE]}


def _pretraining(name: str, width: int, layers: int, tokens: int) -> dict[str, Any]:
    """A recipe for a small Llama. Many small updates: with this few tokens their number counts most."""
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": max(1, width // 64),
        "max_position_embeddings": _CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
    }
    train = {
        "tokens": tokens,
        "batch_size": 4,
        "sequence_length": _CONTEXT,
        "optimizer": {"method": "adamw", "learning_rate": 5e-3},
        "schedule": {"warmup": 0.05, "floor": 0.05},
        "validate_every": 500,
        "validation_tokens": 16_384,
        "checkpoint_every": 500,
        "sample_every": 1000,
        "prompts": _PROMPTS,
        "log_every": 20,
    }
    model = {"config": config, "tokenizer": {"level": "bpe", "vocab_size": 2048}}
    return {"name": name, "model": model, "data": _DATA, "steps": [{"train": train}, _MEASURE]}


def _unigram(folder: Path) -> Iterator[RunRecord]:
    """The baseline as a row, from the data that the target was trained on; none where the target failed."""
    from hayless.data.baselines import Unigram
    from hayless.data.config import DataConfig
    from hayless.data.store import prepare
    from hayless.model.load import load_tokenizer

    model = folder / "target" / "model"
    if not model.is_dir():
        return
    data = prepare(DataConfig.model_validate(_DATA), load_tokenizer(model), folder / "data", kind="lm")
    unigram = Unigram.fit(data.train)
    documents = list(data.heldout.sample(HELDOUT_TOKENS))
    total = unigram.loss(documents)
    each = [(document.id, unigram.loss([document])) for document in documents]
    rows = (
        Measurement(name="bits_per_byte", unit="bits/byte", value=total.bits_per_byte, better="lower"),
        Measurement(name="loss", unit="nats/token", value=total.nats_per_token, better="lower"),
    )
    yield RunRecord(
        label="unigram (only how often tokens occur)",
        folder=folder,
        receipt=Receipt(name="unigram", state="done", rows=rows),
        documents=Documents({id: (loss.nats_per_token * loss.tokens, loss.tokens, loss.bytes) for id, loss in each}),
    )


def _palette(folder: Path, *, fresh: bool) -> bytes:
    """The picture of one image at few colours, by the k-means that packs weights; kept in the demo's folder."""
    kept = folder / "palette.png"
    if fresh or not kept.is_file():
        from hayless.methods.quantize.kmeans.picture import draw

        with tempfile.TemporaryDirectory(prefix="hayless-") as made:
            draw(Path(made) / kept.name)
            atomic.write_bytes(kept, (Path(made) / kept.name).read_bytes())
    return kept.read_bytes()
