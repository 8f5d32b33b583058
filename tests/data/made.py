"""Small corpora, tokenizers and stores that the tests of data share."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hayless.data.config import DataConfig, Source
from hayless.data.store import Kind, Prepared, prepare
from hayless.data.tokenizer import train

_WORDS = "horse grass field run eat fast slow barn hay oats river stone über naïve 马 草 🐎 return def (x): = + 17"
WORDS = _WORDS.split()
SHARED = Path(__file__).parents[3] / "shared" / "data"


def prose(words: int, seed: int) -> str:
    """Random words, the same for the same seed."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) + str(chosen.randrange(30)) for _ in range(words)) + "\n"


@cache
def tokenizer(level: str = "bpe") -> PreTrainedTokenizerBase:
    """A small tokenizer trained on such prose."""
    return train([prose(300, seed) for seed in range(8)], level, 300)  # type: ignore[arg-type]


def chat_tokenizer(
    template: str | None, *, bos: str | None = None, eos: str = "<|im_end|>", level: str = "bpe"
) -> PreTrainedTokenizerBase:
    """A small tokenizer with a chat template and the special tokens that templates of the field write."""
    text = prose(300, 1) + " System user assistant Be brief. Hello! What is 2+2? Four. INST think Instruction Response"
    found = train([text], level, 400)  # type: ignore[arg-type]
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]})
    found.bos_token, found.eos_token = bos, eos
    found.chat_template = template
    return found


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(folder: Path, sizes: list[int], domain: str = "prose") -> Path:
    """A folder of text files of so many words each."""
    place = folder / domain
    place.mkdir(parents=True, exist_ok=True)
    for number, words in enumerate(sizes):
        (place / f"{number:03}.txt").write_text(prose(words, 1000 + number + 7919 * len(domain)), encoding="utf-8")
    return place


def config(*paths: Path, **options: Any) -> DataConfig:
    """A data section over these paths."""
    return DataConfig(sources=tuple(Source(path=str(path)) for path in paths), **options)


def prepared(folder: Path, *paths: Path, kind: Kind = "lm", level: str = "bpe", **options: Any) -> Prepared:
    """Stores of these paths."""
    return prepare(config(*paths, **options), tokenizer(level), folder / "stores", kind=kind)
