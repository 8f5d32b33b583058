"""Tokenizers of every level: lossless, deterministic, saved and read back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import FileDamaged, RequestError
from hayless.data import tokenizer as subject
from hayless.data.tokenizer import END, begin_token, encode, encode_with_ends, end_token, load, save, train
from tests.data import made

LEVELS = ("char", "word", "bpe", "unigram")
TEXT = made.prose(40, 3) + "\n\n  " + made.prose(40, 4) + "\t\n"


@pytest.mark.parametrize("level", LEVELS)
def test_the_end_token_is_zero_and_text_comes_back(level):
    tokenizer = train([TEXT] * 3, level, 2000)
    assert end_token(tokenizer) == begin_token(tokenizer) == 0
    assert tokenizer.convert_ids_to_tokens(0) == END
    assert (tokenizer.unk_token_id is None) == (level == "bpe")
    assert tokenizer.decode(encode(tokenizer, [TEXT])[0]) == TEXT


@pytest.mark.parametrize("level", LEVELS)
def test_a_special_token_in_a_text_is_only_text(level):
    text = f"a {END} b <unk> c"
    tokenizer = train([TEXT, text, "<|end|> <unk>"], level, 400)
    ids = encode(tokenizer, [text])[0]
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def trained() -> list[str]:
    """The definitions of tokenizers of all levels, trained on the same prose."""
    texts = [made.prose(300, seed) for seed in range(6)]
    return [train(texts, level, 300).backend_tokenizer.to_str() for level in LEVELS]


@pytest.mark.slow
def test_training_gives_the_same_in_another_process():
    source = "from tests.data.test_tokenizer import trained; print(*trained(), sep='\\n')"
    other = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120)
    assert other.stdout.splitlines() == trained()


@pytest.mark.parametrize("level", LEVELS)
def test_saved_and_read_back(level, tmp_path):
    tokenizer = made.tokenizer(level)
    save(tokenizer, tmp_path / "tokenizer")
    again = load(tmp_path / "tokenizer")
    assert encode(again, [TEXT]) == encode(tokenizer, [TEXT])
    assert (again.eos_token_id, again.unk_token_id, len(again)) == (0, tokenizer.unk_token_id, len(tokenizer))


def test_a_truncated_tokenizer_is_damaged(tmp_path):
    save(made.tokenizer(), tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(FileDamaged, match="tokenizer"):
        load(tmp_path / "tokenizer")


@pytest.mark.parametrize(("level", "size"), [("bpe", 256), ("char", 2), ("syllable", 100)])
def test_impossible_requests(level, size):
    with pytest.raises(RequestError):
        train([TEXT], level, size)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_to_train_on(level, texts):
    with pytest.raises(RequestError, match="empty"):
        train(texts, level, 300)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_bytes_have_no_unknowns(text):
    tokenizer = made.tokenizer("bpe")
    assert tokenizer.decode(encode(tokenizer, [text])[0]) == text


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=150, deadline=None)
def test_reach_counts_the_bytes_that_tokens_stand_for(text):
    tokenizer = made.tokenizer("bpe")
    [ids], [reach] = encode_with_ends(tokenizer, [text])
    assert ids == encode(tokenizer, [text])[0]
    assert reach == sorted(reach) and (not reach or reach[-1] == len(text.encode()))
    before = 0
    for count, reached in enumerate(reach, start=1):
        if reached > before:
            assert tokenizer.decode(ids[:count]).encode() == text.encode()[:reached]
        before = reached


def test_reach_with_unknowns():
    tokenizer = made.tokenizer("char")
    [_], [reach] = encode_with_ends(tokenizer, ["a🦄b"])
    assert reach == [1, 5, 6]


def test_trained_on_a_recipes_data_once(tmp_path, monkeypatch):
    folder = made.texts(tmp_path, [60] * 8)
    first = subject.train_tokenizer(made.config(folder), "bpe", 300, tmp_path / "kept")
    monkeypatch.setattr(subject, "train", None)
    again = subject.train_tokenizer(made.config(folder), "bpe", 300, tmp_path / "kept")
    assert encode(first, [TEXT]) == encode(again, [TEXT])


def test_a_run_of_millions_of_letters_is_no_trap():
    tokenizer = train(["a" * 2_000_000, " " * 2_000_000, TEXT], "bpe", 300)
    assert tokenizer.decode(encode(tokenizer, [TEXT])[0]) == TEXT
