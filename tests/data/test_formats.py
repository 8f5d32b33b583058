"""Rows of JSON in every format: detected, said, rendered; malformed ones named by file and line."""

from __future__ import annotations

import gzip
import json

import pytest

from hayless.core.errors import FileDamaged, RequestError
from hayless.data.config import Source
from hayless.data.documents import Document
from hayless.data.examples import Example, Preference
from hayless.data.sources import read_source
from tests.data import made

ALPACA = [
    {"instruction": "Add {x}.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello!"},
    {"instruction": "Bye.", "output": "Goodbye."},
]


def read(path, **options):
    return read_source(Source(path=str(path), **options))


@pytest.mark.parametrize("shape", ["lines", "list", "gzipped"])
def test_alpaca_triples(tmp_path, shape):
    lines = "\n".join(json.dumps(row) for row in ALPACA) + "\n"
    path = tmp_path / {"lines": "a.jsonl", "list": "a.json", "gzipped": "a.jsonl.gz"}[shape]
    if shape == "list":
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in ALPACA) + "\n]\n")
    elif shape == "gzipped":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    found = read(path)
    assert "alpaca (detected), 3 records" in found.description
    assert found.records[0] == Example(
        id=f"{path.name}:{2 if shape == 'list' else 1}",
        domain="alpaca",
        prompt="### Instruction:\nAdd {x}.\n\n### Input:\n1 and 2\n\n### Response:\n",
        output="3",
    )
    assert [record.prompt for record in found.records[1:]] == [
        "### Instruction:\nGreet.\n\n### Response:\n",
        "### Instruction:\nBye.\n\n### Response:\n",
    ]


def test_prompts_are_verbatim_and_questions_are_rendered(tmp_path):
    verbatim = read(made.write_lines(tmp_path / "p.jsonl", [{"prompt": "2+2=", "completion": "4"}]))
    assert (verbatim.records[0].prompt, verbatim.records[0].output) == ("2+2=", "4")
    rendered = read(made.write_lines(tmp_path / "q.jsonl", [{"question": "2+2?", "answer": "4"}]))
    assert rendered.records[0].prompt == "### Instruction:\n2+2?\n\n### Response:\n"
    assert "prompt_completion (detected)" in rendered.description


def test_text_rows_take_the_folder_as_domain(tmp_path):
    path = made.write_lines(tmp_path / "poems" / "t.jsonl", [{"text": "a", "source": 3}, {"text": "  "}, {"text": "b"}])
    found = read(path)
    assert found.records == [Document("t.jsonl:1", "poems", "a"), Document("t.jsonl:3", "poems", "b")]
    assert "1 with nothing to learn left out (t.jsonl:2)" in found.description


def test_preference_pairs_with_a_prompt_and_as_whole_dialogues(tmp_path):
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More?\n\nAssistant:"
    rows = [
        {"prompt": "Q: ", "chosen": "good", "rejected": "bad"},
        {"chosen": dialogue + " Yes, gladly.", "rejected": dialogue + " Yeah no."},
        {"chosen": "alpha", "rejected": "beta"},
        {"chosen": "same", "rejected": "same"},
    ]
    found = read(made.write_lines(tmp_path / "p.jsonl", rows))
    assert found.records == [
        Preference("p.jsonl:1", "preference", "Q: ", "good", "bad"),
        Preference("p.jsonl:2", "preference", dialogue, " Yes, gladly.", " Yeah no."),
        Preference("p.jsonl:3", "preference", "", "alpha", "beta"),
    ]
    assert "left out (p.jsonl:4)" in found.description


def test_malformed_rows_are_named_by_file_and_line_and_counted(tmp_path):
    path = tmp_path / "bad.jsonl"
    rows = [
        '{"instruction": "a", "output": "b"}',
        '{"instruction": "a", "output": 7}',
        "",
        "{not json",
        '["a", "b"]',
        '{"instruction": "a"}',
        '{"instruction": null, "output": "b"}',
        '{"instruction": "a", "input": ["x"], "output": "b"}',
        '{"instruction": "a", "output": "\\ud83d"}',
    ]
    path.write_text("\n".join(rows))
    with pytest.raises(RequestError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith("7 malformed rows") and "… and 2 more" in said
    for expected in (
        "line 2: output is int, not a string (read as alpaca)",
        "line 4: no JSON",
        "line 5: a list where an object",
        "line 6: output is missing",
        "line 7: instruction is null",
    ):
        assert f"{path}, {expected}" in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"text": "a"},\n {"text": "b"}', "line 2: the list ends without ]"),
        ('[{"text": "a"},\n\n 3]', "line 3: a number where an object"),
        ('[{"text": "a"},\n {"text": }]', "line 2: no JSON"),
        ('[{"text": "a"}\n {"text": "b"}]', "line 2: the list ends without ]"),
        ("[" * 100_000, "line 1: no JSON"),
        ('{"text": ' + "1" * 5000 + "}", "line 1: no JSON"),
    ],
)
def test_a_damaged_list_names_the_line(tmp_path, content, reason):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(RequestError, match="malformed row") as caught:
        read(tmp_path / "bad.json")
    assert reason in str(caught.value)


def test_a_truncated_gzip_file_is_damaged(tmp_path):
    whole = gzip.compress(json.dumps({"text": made.prose(500, 1)}).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileDamaged, match="gzip"):
        read(tmp_path / "a.jsonl.gz")


def test_unknown_fields_say_what_is_known(tmp_path):
    with pytest.raises(RequestError, match="no known format has the fields foo") as caught:
        read(made.write_lines(tmp_path / "a.jsonl", [{"foo": 1}]))
    assert "instruction + output" in str(caught.value)


def test_rows_and_text_do_not_mix_in_one_source(tmp_path):
    made.write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(RequestError, match="mixes rows"):
        read(tmp_path)


def test_an_empty_rows_file_is_an_error(tmp_path):
    for content in ("", "\n\n", "[]"):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(RequestError, match="no text to learn from"):
            read(tmp_path / "a.json")


def test_a_format_given_is_held_to(tmp_path):
    path = made.write_lines(tmp_path / "a.jsonl", [{"text": "a", "prompt": "p", "completion": "c"}])
    assert isinstance(read(path, format="jsonl").records[0], Document)
    assert read(path, format="text").records[0].text == path.read_text()
    with pytest.raises(RequestError, match="chosen is missing"):
        read(path, format="preference")
