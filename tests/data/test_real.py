"""Real data through the whole path, where it is there."""

from __future__ import annotations

from collections import Counter

import pytest

from hayless.data import check
from hayless.data.batches import IGNORED, Batches, one_pass
from hayless.data.config import DataConfig, Source
from hayless.data.sources import read_source
from hayless.data.store import prepare
from tests.data import made

pytestmark = pytest.mark.skipif(not made.SHARED.is_dir(), reason="the folder of real data (../shared/data) is absent")


def source(name: str, **options) -> Source:
    return Source(path=str(made.SHARED / name), **options)


@pytest.mark.parametrize(
    ("name", "form", "records"),
    [
        ("shakespeare/input.txt", "text", None),
        ("wikitext2/valid.txt", "text", None),
        ("sst2/*.tsv", "text", None),
        ("gsm8k/train.jsonl", "prompt_completion", 2000),
        ("alpaca/alpaca_3000.json", "alpaca", 2999),
        ("preferences/harmless_base_test.jsonl.gz", "preference", None),
    ],
)
def test_formats_are_detected(name, form, records):
    read = read_source(source(name))
    assert f"{form} (detected)" in read.description
    assert records is None or len(read.records) == records
    if form == "alpaca":
        assert "1 with nothing to learn left out (alpaca_3000.json:" in read.description
    if form == "text":
        assert len(read.records) > 50
        assert sum(len(record.text) for record in read.records) <= sum(
            path.stat().st_size for path in made.SHARED.glob(name)
        )
    if form == "preference":
        assert len(read.records) > 2250
        assert sum(record.prompt.endswith("\n\nAssistant:") for record in read.records) == len(read.records)
        assert sum("\n\nHuman:" in record.chosen for record in read.records) < 10


def test_shakespeare_from_text_to_batches(tmp_path):
    prepared = prepare(
        DataConfig(sources=(source("shakespeare/input.txt"),)), made.tokenizer("char"), tmp_path, kind="lm"
    )
    batches = Batches(prepared.train, sequence_length=256, batch_size=8)
    assert batches.fill > 0.98
    assert batches.at(0).trained_tokens > 0.9 * 8 * 256
    assert prepared.heldout.bytes.sum() > 20_000


def test_alpaca_rows_are_full_and_learn_outputs_only(tmp_path):
    prepared = prepare(DataConfig(sources=(source("alpaca/alpaca_3000.json"),)), made.tokenizer(), tmp_path, kind="sft")
    batches = Batches(prepared.train, sequence_length=1024, batch_size=4)
    assert batches.fill >= 0.98
    share = sum(batch.trained_tokens for batch in map(batches.at, range(10))) / (10 * 4 * 1024)
    assert 0.2 < share < 0.9


def test_preferences_give_pairs(tmp_path):
    config = DataConfig(sources=(source("preferences/harmless_base_test.jsonl.gz"),), heldout=0.1)
    prepared = prepare(config, made.tokenizer(), tmp_path, kind="preference")
    seen = Counter()
    for batch in one_pass(prepared.heldout, sequence_length=512, rows=8):
        assert ((batch.targets != IGNORED).sum(dim=1) > 0).all()
        seen.update(name.partition("#")[0] for row in batch.documents for name in row)
    assert len(seen) > 100 and set(seen.values()) == {2}
    assert not {name.partition("#")[0] for name in prepared.train.ids} & set(seen)


@pytest.mark.parametrize(
    ("name", "kind", "refused"),
    [
        ("shakespeare/input.txt", "lm", []),
        ("gsm8k/train.jsonl", "sft", []),
        ("alpaca/alpaca_3000.json", "sft", ["nothing_to_learn"]),
        ("sst2/train.tsv", "lm", []),
    ],
)
def test_what_the_check_finds(tmp_path, name, kind, refused):
    prepared = prepare(DataConfig(sources=(source(name),)), made.tokenizer(), tmp_path, kind=kind)
    problems = check.problems(prepared, made.tokenizer(), sequence_length=2048)
    assert [problem.name for problem in problems if problem.refused] == refused
    assert not {"contained", "end_never_trained", "begin_missing"} & {problem.name for problem in problems}
