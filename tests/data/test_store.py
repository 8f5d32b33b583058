"""Token stores: what went in comes out, a second run reuses them, damage is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hayless.core.errors import FileDamaged, RequestError, WorkError
from hayless.data import encode as encoding
from hayless.data.corpus import corpus, to_measure
from hayless.data.store import TokenStore, prepare, store_of
from hayless.data.tokenizer import encode
from tests.data import made

EXAMPLES = [{"instruction": f"Say {n}.", "output": f"It is {n} über alles"} for n in range(40)]
PAIRS = [{"prompt": f"Q{n}: ", "chosen": f"good {n}", "rejected": f"very bad {n}"} for n in range(40)]


@pytest.mark.parametrize("level", ["char", "word", "bpe", "unigram"])
def test_documents_come_back(tmp_path, level):
    folder = made.texts(tmp_path, [30] * 12)
    prepared = made.prepared(tmp_path, folder, level=level, heldout=0.3)
    cleaned = corpus(made.config(folder, heldout=0.3), tmp_path / "stores")
    tokenizer = made.tokenizer(level)
    for store, records in ((prepared.train, cleaned.train), (prepared.heldout, cleaned.heldout)):
        assert len(store) == len(records) > 0 and store.vocab_size == len(tokenizer)
        for index, record in enumerate(records):
            found = store[index]
            assert (found.id, found.domain, found.bytes) == (record.id, "prose", len(record.text.encode()))
            assert found.tokens.tolist() == [0, *encode(tokenizer, [record.text])[0], 0]
            assert found.trained.tolist() == [False] + [True] * (len(found.tokens) - 1)
    assert "tokens" in prepared.description and "exact copies" in prepared.description


def test_examples_learn_the_output_and_the_end_only(tmp_path):
    store = made.prepared(tmp_path, made.write_lines(tmp_path / "a.jsonl", EXAMPLES), kind="sft").train
    tokenizer = made.tokenizer()
    for index in range(len(store)):
        found = store[index]
        number = found.id.partition(":")[2]
        output = f"It is {int(number) - 1} über alles"
        learnt = found.tokens[found.trained]
        assert tokenizer.decode(learnt[:-1]) == output and learnt[-1] == 0
        assert tokenizer.decode(found.tokens[~found.trained][1:]).endswith("### Response:\n")
        assert found.tokens[0] == 0 and not found.trained[0] and found.bytes == len(output.encode())


def test_pairs_lie_side_by_side(tmp_path):
    prepared = made.prepared(tmp_path, made.write_lines(tmp_path / "p.jsonl", PAIRS), kind="preference", heldout=0.2)
    for store in (prepared.train, prepared.heldout):
        assert len(store) % 2 == 0
        for index in range(0, len(store), 2):
            chosen, rejected = store[index], store[index + 1]
            name = chosen.id.removesuffix("#chosen")
            assert rejected.id == f"{name}#rejected"
            number = int(name.partition(":")[2]) - 1
            decoded = [made.tokenizer().decode(found.tokens[found.trained][:-1]) for found in (chosen, rejected)]
            assert decoded == [f"good {number}", f"very bad {number}"]


def test_a_second_run_reuses_and_a_change_does_not(tmp_path):
    folder = made.texts(tmp_path, [30] * 12)
    first = made.prepared(tmp_path, folder)
    stamp = (first.train.folder / "tokens.npy").stat().st_mtime_ns
    again = made.prepared(tmp_path, folder)
    assert again.train.folder == first.train.folder and again.description == first.description
    assert (again.train.folder / "tokens.npy").stat().st_mtime_ns == stamp
    assert made.prepared(tmp_path, folder, level="char").train.folder != first.train.folder
    assert made.prepared(tmp_path, folder, heldout=0.5).train.folder != first.train.folder
    (folder / "000.txt").write_text("other text")
    assert made.prepared(tmp_path, folder).train.folder != first.train.folder


def test_progress_is_told(tmp_path):
    said = []
    folder = made.texts(tmp_path, [30] * 12)
    prepare(made.config(folder), made.tokenizer(), tmp_path, kind="lm", progress=lambda *state: said.append(state))
    assert {what for what, _, _ in said} == {"reading sources", "looking for copies", "tokenizing"}
    assert all(0 <= done <= total for _, done, total in said)


@pytest.mark.parametrize("length", [0, 1, 9, 12_345])
def test_a_growing_file_is_what_numpy_writes(tmp_path, length):
    values = np.arange(length, dtype=np.uint16)
    with encoding._Growing(tmp_path / "grown.npy", np.dtype(np.uint16)) as file:
        for start in range(0, length, 1000):
            file.append(values[start : start + 1000])
    np.save(tmp_path / "saved.npy", values)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


@pytest.mark.parametrize(
    "name", ["tokens.npy", "offsets.npy", "bytes.npy", "trained.npy", "reach.npy", "documents.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "emptied"])
def test_damage_is_noticed(tmp_path, name, damage):
    path = made.write_lines(tmp_path / "a.jsonl", EXAMPLES)
    folder = made.prepared(tmp_path, path, kind="sft").heldout.folder
    victim = folder / name
    content = bytearray(victim.read_bytes())
    if damage == "missing":
        victim.unlink()
    else:
        content[-1] ^= 1
        victim.write_bytes({"truncated": content[:-3], "altered": content, "emptied": b""}[damage])
    with pytest.raises(FileDamaged, match=name):
        made.prepared(tmp_path, path, kind="sft")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', "\0"])
def test_a_store_without_its_table_is_none(tmp_path, content):
    folder = made.prepared(tmp_path, made.texts(tmp_path, [30] * 12)).train.folder
    (folder / "store.json").write_text(content)
    with pytest.raises(FileDamaged, match=r"store\.json"):
        TokenStore(folder)
    with pytest.raises(FileDamaged, match="no token store"):
        TokenStore(tmp_path / "nowhere")


def test_parts_that_do_not_belong_together(tmp_path):
    prepared = made.prepared(tmp_path, made.texts(tmp_path, [30] * 12))
    other = (prepared.heldout.folder / "documents.json").read_text()
    (prepared.train.folder / "documents.json").write_text(other)
    with pytest.raises(FileDamaged, match="belong together"):
        TokenStore(prepared.train.folder, verify=False)


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    folder = made.texts(tmp_path, [30] * 12)
    whole = made.prepared(tmp_path, folder)

    def full(self, values):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(encoding._Growing, "append", full)
        with pytest.raises(WorkError, match="No space left"):
            made.prepared(tmp_path, folder, level="char")
    assert [path.name for path in (tmp_path / "stores").glob("tokens-*")] == [whole.train.folder.parent.name]
    assert not list((tmp_path / "stores").glob(".*"))
    made.prepared(tmp_path, folder, level="char")


@pytest.mark.slow
def test_killed_half_way_it_starts_again(tmp_path):
    folder = made.texts(tmp_path, [3000] * 30)
    source = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.data import made\nfrom hayless.data import encode\n"
        "grow = encode._Growing.append\n"
        "def slow(self, values):\n    grow(self, values); self._file and self._file.flush(); time.sleep(.5)\n"
        "encode._Growing.append = slow\n"
        f"made.prepared(Path({str(tmp_path)!r}), Path({str(folder)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "stores").glob(".tokens-*/train/tokens.npy")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "stores").glob("tokens-*"))
    store = made.prepared(tmp_path, folder).train
    assert len(store) > 20


def test_a_vocabulary_above_16_bits_is_stored_in_32(tmp_path):
    tokenizer = made.tokenizer()
    from hayless.data.tokenizer import train

    large = train([made.prose(100, 1)], "bpe", 300)
    large.add_tokens([f"[new{number}]" for number in range(66_000)])
    folder = made.texts(tmp_path, [30] * 6)
    (folder / "000.txt").write_text("one [new65999] two")
    stores = prepare(made.config(folder), large, tmp_path / "large", kind="lm")
    small = prepare(made.config(folder), tokenizer, tmp_path / "small", kind="lm")
    assert (stores.train.tokens.dtype, small.train.tokens.dtype) == (np.uint32, np.uint16)
    assert max(int(store.tokens.max()) for store in (stores.train, stores.heldout)) == len(large) - 1


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    from hayless.data.tokenizer import train

    endless = train([made.prose(100, 1)], "bpe", 300)
    endless.eos_token = None
    with pytest.raises(RequestError, match="no end token"):
        prepare(made.config(made.texts(tmp_path, [30] * 6)), endless, tmp_path, kind="lm")


def test_without_a_begin_token_the_end_stands_before_texts_but_not_before_prompts(tmp_path):
    from hayless.data.tokenizer import train

    tokenizer = train([made.prose(100, 1)], "bpe", 300)
    tokenizer.bos_token = None
    text = prepare(made.config(made.texts(tmp_path, [30] * 6)), tokenizer, tmp_path, kind="lm").train
    assert text[0].tokens[0] == 0 and not text[0].trained[0]
    path = made.write_lines(tmp_path / "a.jsonl", EXAMPLES)
    examples = prepare(made.config(path), tokenizer, tmp_path, kind="sft").train
    assert tokenizer.decode(examples[0].tokens[:1]) == "#"


@pytest.mark.parametrize("kind", ["lm", "sft"])
def test_a_sample_is_within_its_budget_the_same_every_time_and_exact_in_bytes(tmp_path, kind):
    if kind == "lm":
        store = made.prepared(tmp_path, made.texts(tmp_path, [20, 400, 30, 900] * 8), heldout=0.5).heldout
    else:
        store = made.prepared(
            tmp_path, made.write_lines(tmp_path / "a.jsonl", EXAMPLES), kind=kind, heldout=0.5
        ).heldout
    tokenizer = made.tokenizer()
    for budget, longest in ((3000, None), (700, 300), (5, 5), (1, 1), (10**9, 10**9)):
        found = list(store.sample(budget, longest=longest))
        again = list(store.sample(budget, longest=longest))
        assert [(d.id, d.bytes, d.tokens.tolist()) for d in found] == [
            (d.id, d.bytes, d.tokens.tolist()) for d in again
        ]
        assert sum(len(document.tokens) for document in found) <= budget
        for document in found:
            learnt = document.tokens[document.trained]
            text = tokenizer.decode(learnt, skip_special_tokens=True)
            assert "\N{REPLACEMENT CHARACTER}" not in text and document.bytes == len(text.encode()) > 0
            assert longest is None or len(document.tokens) <= longest
    assert len(found) == len(store)
    assert len({document.id for document in store.sample(3000)}) >= min(len(store), 8)


def test_descriptions_count_a_spelt_out_end_token_in_foreign_tokenizers(tmp_path):
    """A tokenizer that turns text into its end token, as SentencePiece models with control pieces in reach may do."""
    tokenizer = made.tokenizer("word")
    changed = json.loads(tokenizer.backend_tokenizer.to_str())
    changed["added_tokens"] = []
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    changed["model"]["vocab"] = {
        ("horse1" if word == "<|end|>" else word): at
        for word, at in changed["model"]["vocab"].items()
        if word != "horse1"
    }
    foreign = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(changed)), unk_token="<unk>")
    foreign.eos_token = "horse1"
    folder = made.texts(tmp_path, [400] * 6)
    said = prepare(made.config(folder), foreign, tmp_path, kind="lm").description
    assert "hold the end token inside their text" in said


def test_a_store_that_fits_the_budget_is_sampled_whole(tmp_path):
    store = made.prepared(tmp_path, made.texts(tmp_path, [600, 900] * 3), heldout=0.5).heldout
    longest = int(store.lengths.max())
    assert longest > max(256, len(store.tokens) // 16)
    whole = list(store.sample(len(store.tokens)))
    assert len(whole) == len(store) and sum(len(document.tokens) for document in whole) == len(store.tokens)
    assert max(len(document.tokens) for document in store.sample(len(store.tokens) - 1)) < longest


def test_a_store_for_one_look_is_cut_exactly_too(tmp_path):
    config = made.config(made.texts(tmp_path, [900]))
    store = store_of(to_measure(config, everything=True), made.tokenizer(), tmp_path / "look")
    assert (len(store), store.kind) == (1, "lm")
    (document,) = store.sample(300)
    assert len(document.tokens) <= 300
    learnt = document.tokens[document.trained]
    assert document.bytes == len(made.tokenizer().decode(learnt).encode())
