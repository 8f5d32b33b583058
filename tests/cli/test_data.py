"""`hayless data check`: what it prints and writes, and how it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hayless.cli.data import app
from hayless.core.errors import RequestError
from hayless.data.tokenizer import save
from tests import tiny
from tests.data import made
from tests.data.test_check import chats, rows
from tests.data.test_templates import CHATML


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    found = made.chat_tokenizer(CHATML)
    found.pad_token = "</s>"
    save(found, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_good_data(tmp_path: Path, tokenizer: Path) -> None:
    path = made.write_lines(tmp_path / "chats.jsonl", chats(30))
    page, picture = tmp_path / "page.html", tmp_path / "lengths.svg"
    found = run(path, "--tokenizer", tokenizer, "--html", page, "--out", picture, "--sequence-length", 256)
    assert found.exit_code == 0, found.output
    for words in ("messages (detected), 30 records", "No problems found.", "positions that are learnt"):
        assert words in found.stdout
    assert "<|im_end|>⟧" in found.stdout and found.stdout.count("⟦") == 3 + 1
    assert "None found." in page.read_text() and ">sequence length 256<" in picture.read_text()


def test_refused_data_leaves_with_one_and_says_so_as_json_too(tmp_path: Path, tokenizer: Path) -> None:
    path = made.write_lines(tmp_path / "rows.jsonl", [*rows(20), {"prompt": "p", "completion": ""}])
    arguments = (path, "--tokenizer", tokenizer, "--sequence-length", 8)
    found = run(*arguments)
    assert found.exit_code == 1 and "3 problems refused" in found.stdout
    document = json.loads(run(*arguments, "--json").stdout)
    names = {problem["name"]: problem for problem in document["problems"]}
    assert document["refused"] and document["kind"] == "sft" and document["figures"] is None
    assert names["nothing_to_learn"]["ids"] == ["rows.jsonl:21"] and names["truncated"]["count"] == 20
    assert all(names[name]["refused"] for name in ("nothing_to_learn", "answer_cut_off", "truncated"))
    assert sum(len(example["first"]) for example in document["examples"]) > 0
    allowed = run(*arguments, "--allow-truncation", "--allow", "nothing_to_learn", "--json")
    assert allowed.exit_code == 0 and not json.loads(allowed.stdout)["refused"]


def test_a_model_too_small_for_the_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    (tokenizer / "config.json").write_text(json.dumps(tiny.config("llama").to_dict()))
    path = made.write_lines(tmp_path / "chats.jsonl", chats(9))
    document = json.loads(run(path, "--model", tokenizer, "--json").stdout)
    [problem] = document["problems"]
    assert problem["name"] == "outside_model" and "96 embeddings" in problem["what"]


def test_new_tokens_are_one_token_and_must_stand_somewhere(tmp_path: Path, tokenizer: Path) -> None:
    path = made.write_lines(
        tmp_path / "rows.jsonl", [{"prompt": f"<ask>{n}?", "completion": f"{n}."} for n in range(20)]
    )
    arguments = (path, "--tokenizer", tokenizer, "--sequence-length", 64, "--json", "--allow", "contained")
    plain, added = (json.loads(run(*arguments, *more).stdout) for more in ((), ("--new-token", "<ask>")))
    first = [[token["text"] for token in found["examples"][0]["first"]] for found in (plain, added)]
    assert "<ask>" in first[1] and "<ask>" not in first[0] and "".join(first[0]) == "".join(first[1])
    assert "new_token_unseen" not in {problem["name"] for problem in added["problems"]}
    nowhere = json.loads(run(*arguments, "--new-token", "<ask>", "--new-special", "<say>").stdout)
    [found] = [problem for problem in nowhere["problems"] if problem["name"] == "new_token_unseen"]
    assert found["refused"] and (found["count"], found["total"], found["ids"]) == (1, 2, ["<say>"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("rows.jsonl",), "Neither a model nor a tokenizer"),
        (("--tokenizer", "tokenizer"), "no data"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--objective", "dpo"), "--objective"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--objective", "reward"), "learns from preference pairs"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--sequence-length", 0), "--sequence-length"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--allow", "everything"), "--allow = 'everything'"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--turns", "first"), "--turns = 'first'"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--heldout", 2), "--heldout = 2.0"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--out", "plot.pdf"), "png or .svg"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--new-token", " "), "--new-token: a token must hold"),
        (("rows.jsonl", "--tokenizer", "tokenizer", "--new-special", "<s>"), "--new-special = '<s>'"),
        (("rows.jsonl", "text.jsonl", "--tokenizer", "tokenizer"), "used in different ways"),
    ],
)
def test_wrong_requests(tmp_path: Path, tokenizer: Path, monkeypatch: Any, arguments: Any, reason: str) -> None:
    made.write_lines(tmp_path / "rows.jsonl", rows(9))
    made.write_lines(tmp_path / "text.jsonl", [{"text": ""}, {"text": "a"}])
    monkeypatch.chdir(tmp_path)
    found = run(*arguments)
    assert isinstance(found.exception, RequestError) and reason in str(found.exception), found.exception
