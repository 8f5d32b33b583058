"""Finding and reading text files, and what is said where there is nothing to read."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import pytest

from hayless.core.errors import RequestError
from hayless.data.config import Source
from hayless.data.documents import COLLECTION_BYTES, PIECE_BYTES, cut, find_files
from hayless.data.sources import read_source
from tests.data import made


def test_a_folder_gives_text_files_in_order_and_says_what_it_passed_over(tmp_path):
    made.texts(tmp_path, [5, 6, 7])
    (tmp_path / "prose" / ".hidden.txt").write_text("no")
    (tmp_path / "prose" / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "prose" / "blank.txt").write_text(" \n")
    read = read_source(Source(path=str(tmp_path)))
    assert [record.id for record in read.records] == ["prose/000.txt", "prose/001.txt", "prose/002.txt"]
    assert {record.domain for record in read.records} == {"prose"}
    assert (
        "2 passed over" in read.description and "1 with nothing to learn left out (prose/blank.txt)" in read.description
    )
    assert "text (detected)" in read.description


def test_a_glob_takes_files_of_any_name(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "one.log").write_text("one")
    (tmp_path / "two.log").write_text("two")
    found = find_files(str(tmp_path / "**" / "*.log"))
    assert [file.name for file in found.files] == ["a/deep/one.log", "two.log"]
    renamed = read_source(Source(path=str(tmp_path / "*.log"), domain="logs", format="text"))
    assert [(record.id, record.domain) for record in renamed.records] == [("two.log", "logs")]


def test_a_link_in_a_circle_gives_each_file_once(tmp_path):
    made.texts(tmp_path, [5, 6])
    try:
        (tmp_path / "prose" / "again").symlink_to(tmp_path / "prose", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    found = find_files(str(tmp_path / "**" / "*.txt"))
    assert [file.name for file in found.files] == ["prose/000.txt", "prose/001.txt"]


@pytest.mark.parametrize("pattern", ["nothing.txt", "*.nothing", "no/such/**/*.txt", "[", "x?", "x\0y"])
def test_what_matches_nothing_is_an_error_that_says_what_was_looked_for(tmp_path, pattern):
    with pytest.raises(RequestError) as caught:
        read_source(Source(path=str(tmp_path / pattern)))
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 2


def test_a_folder_without_text_is_an_error(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\0")
    with pytest.raises(RequestError, match=r"no text files \(1 others\)"):
        read_source(Source(path=str(tmp_path)))


def test_empty_files_only_are_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(RequestError, match="no text to learn from"):
        read_source(Source(path=str(tmp_path / "empty.txt")))


def test_a_pipe_is_no_file(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="not a regular file"):
        read_source(Source(path=str(tmp_path / "pipe")))


def test_the_first_byte_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("fine\nna\xefve".encode("latin-1"))
    with pytest.raises(RequestError, match=r"latin\.txt is not UTF-8: byte 0xef at position 7 \(line 2\)"):
        read_source(Source(path=str(tmp_path / "latin.txt")))


def test_a_byte_order_mark_is_dropped_and_line_ends_stay(tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_source(Source(path=str(tmp_path / "dos.txt"))).records[0].text == "one\r\ntwo\r\n"


def test_gzipped_text_is_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("näive".encode()))
    assert read_source(Source(path=str(tmp_path))).records[0].text == "näive"


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    with pytest.raises(RequestError, match=r"a\.txt cannot be read: Permission denied"):
        read_source(Source(path=str(tmp_path / "a.txt")))


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="this system has no such names")
def test_odd_file_names(tmp_path):
    (tmp_path / "a#1.txt").write_text("one")
    (tmp_path / "a#2.txt").write_text("two")
    assert [record.id for record in read_source(Source(path=str(tmp_path))).records] == ["a%231.txt", "a%232.txt"]
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("three")
    with pytest.raises(RequestError, match="is not UTF-8"):
        read_source(Source(path=str(tmp_path)))


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(RequestError, match="path = '' is not possible"):
        read_source(Source(path=""))


@pytest.mark.parametrize("joint", ["\n\n", "\n", " ", ""])
def test_a_large_file_is_cut_into_pieces_that_together_are_the_file(joint):
    text = joint.join(made.prose(9, seed).strip() for seed in range(1500))
    assert len(text.encode()) > COLLECTION_BYTES
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 2 * PIECE_BYTES for piece in pieces)
    assert len(pieces) > len(text) / (2 * PIECE_BYTES)
    if joint.strip(" "):
        assert all(piece.endswith(joint) for piece in pieces[:-1])


def test_a_small_file_stays_whole():
    text = made.prose(400, 1) + "\n\n" + made.prose(400, 2)
    assert list(cut(text)) == [text]
