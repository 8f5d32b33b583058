"""Comparing tokenizers: figures by hand, a picture that draws them, and where tokens are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.data.comparison import Comparison, compare, draw
from hayless.data.pieces import pieces
from hayless.data.texts import read_texts
from hayless.data.tokenizer import encode, train
from tests.data import made


def test_comparison_by_hand():
    texts = ["aab", "ba🦄"]
    found = {
        row.name: row
        for row in compare(
            {"char": train(["ab" * 9], "char", 10), "bpe": train(["ab" * 9], "bpe", 257)},
            texts,
            hidden_size=8,
            body_parameters=968,
            context=100,
        )
    }
    assert found["char"].entries == 4
    assert found["char"].bytes_per_token == pytest.approx(9 / 6)
    assert found["char"].unknown_rate == pytest.approx(1 / 6)
    assert found["char"].embedding_share == pytest.approx(32 / 1000)
    assert found["char"].context_bytes == pytest.approx(150)
    assert found["bpe"].bytes_per_token == pytest.approx(1) and found["bpe"].unknown_rate == 0
    untied = compare(
        {"char": train(["ab"], "char", 10)}, texts, hidden_size=8, body_parameters=936, context=1, tied=False
    )
    assert untied[0].embedding_share == pytest.approx(64 / 1000)
    with pytest.raises(RequestError, match="no text"):
        compare({}, [""], hidden_size=8, body_parameters=1, context=1)
    with pytest.raises(RequestError, match="hidden_size = 0"):
        compare({}, texts, hidden_size=0, body_parameters=1, context=1)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_picture_shows_every_figure_and_is_the_same_each_time(form):
    rows = [Comparison("a", 96, 1.25, 0.0, 0.031, 777.0, 3.5), Comparison("b", 4096, 4.75, 0.0625, 0.4, 2432.0, 12.0)]
    picture = draw(rows, form)
    assert picture == draw(rows, form) != draw(rows[:1], form)
    if form == "svg":
        for text in ("a (96)", "b (4,096)", "4.75", "6.25", "40.0", "2,432", "12.0", "bytes a token"):
            assert f">{text}<" in picture.decode()


@pytest.mark.parametrize("level", ["char", "word", "bpe", "unigram"])
def test_pieces_join_to_the_text(level):
    text = made.prose(30, 2) + "\n  " + made.prose(10, 3)
    tokenizer = train([text], level, 2000)
    [ids] = encode(tokenizer, [text])
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids) and all(found)
    assert "".join(found) == text
    assert pieces(tokenizer, [0]) == ["<|end|>"]


@given(st.text(max_size=30))
@settings(max_examples=80, deadline=None)
def test_parts_of_a_character_are_written_in_bytes(text):
    tokenizer = made.tokenizer("bpe")
    [ids] = encode(tokenizer, [text])
    found = pieces(tokenizer, ids)
    assert all("\N{REPLACEMENT CHARACTER}" not in piece or "\N{REPLACEMENT CHARACTER}" in text for piece in found)
    if text.isascii():
        assert "".join(found) == text


def test_bytes_of_one_character():
    tokenizer = train(["abc"], "bpe", 257)
    [ids] = encode(tokenizer, ["a🐎"])
    assert pieces(tokenizer, ids) == ["a", r"\xf0", r"\x9f", r"\x90", r"\x8e"]


def test_texts_are_split_as_training_splits_them(tmp_path):
    folder = made.texts(tmp_path, [30] * 12)
    found = read_texts(made.config(folder).sources, 0.3)
    prepared = made.prepared(tmp_path, folder, heldout=0.3)
    assert len(found.train) == len(prepared.train) and len(found.heldout) == len(prepared.heldout)
    assert not set(found.train) & set(found.heldout)
    everything = read_texts(made.config(folder).sources, 0.0)
    assert sorted(everything.train) == sorted(everything.heldout) == sorted(found.train + found.heldout)
    (tmp_path / "one.txt").write_text("alone")
    with pytest.raises(RequestError, match="heldout 0"):
        read_texts(made.config(tmp_path / "one.txt").sources, 0.05)
    with pytest.raises(RequestError, match="heldout = 1"):
        read_texts(made.config(folder).sources, 1)
