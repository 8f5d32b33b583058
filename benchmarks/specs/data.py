"""Tokenizing beside datasets.map with the same tokenizer, and the check of a file of examples."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from parts.scratch import folder

from hayless.core.measurement import Goal
from hayless.core.progress import no_progress
from hayless.data import stdlib
from hayless.data.corpus import RecordFile
from hayless.data.encode import encode_records
from hayless.data.tokenizer import load, save, train
from hayless.study.bench.gate import Answer, close
from hayless.study.bench.spec import TIME, Contender, Prepared, Spec, Work

_MB = 10**6
_LOOKED_AT = 200
_EXAMPLES = 100_000


@cache
def library() -> list[str]:
    """The texts of Python's own library, in an order of its own, so that any part of it is mixed."""
    texts = [document.text for document in stdlib.read().documents]
    random.Random(0).shuffle(texts)
    return texts


@cache
def tokenizer() -> Any:
    """8,192 byte pairs, trained on two megabytes of it; read from disk, as tokenizers are."""
    found = train(_first(iter(library()), 2 * _MB), "bpe", 8192)
    save(found, folder() / "tokenizer")
    return load(folder() / "tokenizer")


def _first(texts: Iterator[str], size: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        if taken >= size:
            return
        taken += len(text.encode())
        yield text


def _varied() -> Iterator[str]:
    """The library again and again, each time with the lines of every text in another order."""
    for times in itertools.count():
        order = random.Random(times)
        for text in library():
            lines = text.splitlines(keepends=True)
            if times:
                order.shuffle(lines)
            yield "".join(lines)


@cache
def corpus(megabytes: int) -> tuple[Path, int]:
    """A file of so many megabytes of text as `hayless.data.corpus` writes them, and how many documents it has."""
    path, count = folder() / f"{megabytes}.jsonl", 0
    with path.open("w", encoding="utf-8") as file:
        for text in _first(_varied(), megabytes * _MB):
            row = {"record": "Document", "id": str(count), "domain": "d", "text": text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return path, count


def _answer(documents: int, tokens: int, first: list[list[int]]) -> Answer:
    return {"documents": [documents], "tokens": [tokens], "first documents": list(itertools.chain(*first))}


def datasets_map(megabytes: int) -> Prepared:
    """`Dataset.map` in batches as its documentation has it, without the attention mask that nobody reads."""
    import datasets

    datasets.disable_progress_bars()
    path, _ = corpus(megabytes)
    words, cache_dir = tokenizer(), folder() / f"datasets-{megabytes}"
    loaded: Any = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache_dir))

    def tokens(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = words(batch["text"], add_special_tokens=False, return_attention_mask=False)
        return {"input_ids": found["input_ids"]}

    def run() -> Any:
        return loaded.map(
            tokens,
            batched=True,
            remove_columns=loaded.column_names,
            cache_file_name=str(cache_dir / "tokens.arrow"),
            load_from_cache_file=False,
        )

    def answer() -> Answer:
        found = run()
        column = found.with_format("arrow")["input_ids"]
        total = sum(len(chunk.values) for chunk in column.chunks)
        return _answer(len(found), total, found[:_LOOKED_AT]["input_ids"])

    return Prepared(run, answer)


def hayless(megabytes: int) -> Prepared:
    """What `prepare` does once the text is clean: tokens on disk, with a begin and an end token for each document."""
    path, count = corpus(megabytes)
    words, target = tokenizer(), folder() / f"store-{megabytes}"

    def run() -> Any:
        shutil.rmtree(target, ignore_errors=True)
        return encode_records(RecordFile(path, count), words, target, kind="lm", reach=False, progress=no_progress)

    def answer() -> Answer:
        found = run()
        tokens = np.load(target / "tokens.npy", mmap_mode="r")
        ends = found.offsets[: _LOOKED_AT + 1]
        first = [tokens[a + 1 : b - 1].tolist() for a, b in itertools.pairwise(ends)]
        return _answer(len(found.ids), len(tokens) - 2 * len(found.ids), first)

    return Prepared(run, answer)


def check() -> Prepared:
    """`hayless data check` on examples of Alpaca's size (about 400 bytes, log-normal), the whole process timed."""
    words = sorted({word for text in library() for word in re.findall(r"\b[a-z]{2,12}\b", text)})
    chosen = random.Random(0)
    path = folder() / "examples.jsonl"

    def some(median: float) -> str:
        return " ".join(chosen.choices(words, k=min(300, max(1, round(chosen.lognormvariate(0, 0.9) * median)))))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(_EXAMPLES):
            file.write(json.dumps({"instruction": some(10), "input": "", "output": some(26)}) + "\n")
    tokenizer()
    arguments = [
        sys.executable,
        "-m",
        "hayless",
        "data",
        "check",
        str(path),
        "--tokenizer",
        str(folder() / "tokenizer"),
    ]

    def run() -> Any:
        return json.loads(subprocess.run([*arguments, "--json"], check=True, capture_output=True, text=True).stdout)

    def answer() -> Answer:
        figures = run()["figures"]
        return {"documents": [figures["documents"] + figures["heldout_documents"]]}

    return Prepared(run, answer)


def _tokenizing(megabytes: int) -> Work:
    goal = Goal(op=">=", against="datasets.map", ratio=0.9)
    return Work(
        f"tokenizing {megabytes} MB of text (documents of Python's library, lines in changing order), BPE of 8,192"
        " entries, from a file of JSON lines to a file of tokens, all cores",
        [
            Contender("datasets.map", partial(datasets_map, megabytes), needs=("datasets",)),
            Contender("hayless", partial(hayless, megabytes), goals={TIME: goal}),
        ],
        same=close(),
        piece="MB",
        pieces=megabytes,
        repeats=3,
        warmup=0,
    )


SPEC = Spec(
    name="data",
    works=[
        _tokenizing(25),
        _tokenizing(100),
        Work(
            f"data check of {_EXAMPLES:,} examples in a fresh process, all cores",
            [Contender("hayless", check, goals={TIME: Goal(op="<=", value=30e3)})],
            same=close(),
            piece="check",
            repeats=3,
            warmup=0,
            peaks=False,
        ),
    ],
)
