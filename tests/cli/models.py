"""Small saved models with a tokenizer, and how their verbs are run, for the tests of verbs that take a model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
import typer
from typer.testing import CliRunner

from hayless.data.tokenizer import train
from hayless.model.save import save_model
from tests import tiny

ENTRIES = 300
CONTEXT = 64
LINES = [f"row {number}: the {'quick' if number % 3 else 'slow é'} fox, {number * 37 % 101}\n" for number in range(200)]


@cache
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    """A tokenizer of 300 entries."""
    return train(LINES, "bpe", ENTRIES)


def model(name: str = "llama", *, reward: bool = False) -> transformers.PreTrainedModel:
    """A tiny model for that tokenizer."""
    torch.manual_seed(0)
    config = tiny.config(name)
    config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = ENTRIES, 0, 0, 0
    if reward:
        config.num_labels = 1
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def saved(folder: Path, name: str = "llama", *, reward: bool = False) -> str:
    """The folder of that model with its tokenizer."""
    save_model(model(name, reward=reward), folder, tokenizer=tokenizer())
    return str(folder)


def write_texts(folder: Path) -> Path:
    """Two domains of six documents each."""
    for number in range(12):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(parents=True, exist_ok=True)
        lines = LINES[number * 5 : number * 5 + 2 + number]
        (place / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def run(verb: Any, *arguments: str, stdin: str | bytes | None = None) -> Any:
    """The result of a verb (a function, or an app of several) in this process."""
    app = verb
    if not isinstance(verb, typer.Typer):
        app = typer.Typer()
        app.command()(verb)
    return CliRunner().invoke(app, list(arguments), input=stdin)


def raised(result: Any) -> None:
    """Raise the error that a verb ended with."""
    assert result.exception is not None, result.output
    raise result.exception
