"""`hayless tokenize`: trained on what is not held out, compared on what is, shown token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hayless.cli.tokenize import app
from hayless.core.errors import RequestError
from hayless.data.tokenizer import load, save
from tests.data import made


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made.texts(tmp_path, [60] * 30)


def test_train_writes_a_tokenizer_and_says_how_good_it_is(folder: Path, tmp_path: Path) -> None:
    found = run("train", folder, "--level", "word", "--vocab-size", 40, "--out", tmp_path / "t", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["entries"] == len(load(tmp_path / "t")) == 40
    assert document["unknown_rate"] > 0 and document["bytes_per_token"] > 1
    shown = run("train", folder, "--level", "char", "--out", tmp_path / "c")
    assert "no more than" in shown.stdout and "0.00% unknown" in shown.stdout


def test_an_existing_folder_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    found = run("train", folder, "--out", folder)
    assert isinstance(found.exception, RequestError) and "does not exist yet" in str(found.exception)
    assert len(list(folder.iterdir())) == 30


def test_compare_gives_rows_a_sentence_and_a_picture(folder: Path, tmp_path: Path) -> None:
    save(made.tokenizer(), tmp_path / "mine")
    arguments = ("compare", tmp_path / "mine", "char", "bpe:300", "--data", folder, "--context", 100)
    found = run(*arguments, "--out", tmp_path / "plot.svg", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == ["mine", "char", "bpe:300"]
    assert rows["bpe:300"]["entries"] == 300 and rows["char"]["bytes_per_token"] < rows["mine"]["bytes_per_token"]
    assert rows["mine"]["context_bytes"] == pytest.approx(100 * rows["mine"]["bytes_per_token"])
    assert "".join(token["text"] for token in rows["mine"]["sentence"]) == "This is tokenizing"
    assert ">bpe:300 (300)<" in (tmp_path / "plot.svg").read_text()
    shown = run(*arguments)
    assert f"{rows['char']['context_bytes']:,.0f} B" in shown.stdout
    assert "T│h│i│s│ │" in shown.stdout.replace("<unk>", "T")


def test_show_cuts_a_text(tmp_path: Path) -> None:
    save(made.tokenizer(), tmp_path / "mine")
    found = json.loads(run("show", "run horse\n", "--tokenizer", tmp_path / "mine", "--json").stdout)
    cut = found["tokenizers"]["mine"]
    assert "".join(token["text"] for token in cut) == "run horse\n"
    assert made.tokenizer().decode([token["id"] for token in cut]) == "run horse\n"
    assert f"{len(cut)} tokens  r│u│n│ horse│⏎" in run("show", "run horse\n", "--tokenizer", tmp_path / "mine").stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("compare",), "no data"),
        (("show", "text"), "No tokenizer is named"),
        (("compare", "--builtin", "library"), "--builtin"),
        (("compare", "--builtin", "stdlib", "--out", "plot.gif"), "png or .svg"),
        (("compare", "char", "char", "--data", "."), "twice"),
        (("train", "--out", "nowhere", "missing.txt"), "missing.txt"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    found = run(*arguments)
    assert isinstance(found.exception, RequestError) and reason in str(found.exception), found.exception
