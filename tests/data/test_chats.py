"""Chats and pairs of answers in every shape that datasets write them in, and what is wrong with rows, in words."""

from __future__ import annotations

import json

import pytest

from hayless.core.errors import RequestError
from hayless.data.chats import ChatPreference, Conversation
from hayless.data.config import Source
from hayless.data.examples import Example
from hayless.data.sources import read_source
from tests.data import made

USER, ANSWER = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "Four."}
SYSTEM, MORE = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "More?"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def read(tmp_path, *rows, **options):
    return read_source(Source(path=str(made.write_lines(tmp_path / "c.jsonl", list(rows))), **options))


def first(tmp_path, row, **options):
    [record] = read(tmp_path, row, **options).records
    return record


def test_messages(tmp_path):
    found = read(tmp_path, {"messages": [SYSTEM, USER, ANSWER, MORE, ANSWER], "tools": TOOLS}, {"messages": [USER]})
    assert "messages (detected), 1 records" in found.description
    assert "1 with nothing to learn left out (c.jsonl:2)" in found.description and found.empty == ("c.jsonl:2",)
    expected = [SYSTEM, USER, ANSWER, MORE, ANSWER]
    assert found.records == [Conversation("c.jsonl:1", "messages", expected, [2, 4], TOOLS)]
    assert found.records[0].text.startswith("system: Be brief.\nuser: What is 2+2?\nassistant: Four.\n")


def test_the_last_turn_only_and_turns_of_no_weight(tmp_path):
    messages = [USER, ANSWER, MORE, ANSWER]
    assert first(tmp_path, {"messages": messages}, turns="last").learnt == [3]
    found = first(tmp_path, {"messages": [USER, {**ANSWER, "weight": 0}, MORE, {**ANSWER, "weight": 1}]})
    assert found.learnt == [3] and found.messages == messages
    assert read(tmp_path, {"messages": messages}, {"messages": [USER, {**ANSWER, "weight": 0}]}).empty == ("c.jsonl:2",)


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_calls_of_tools(tmp_path, tools):
    called = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": None}]}
    result = {"role": "tool", "content": "4", "tool_call_id": "x"}
    as_string = {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 2}'}}]}
    for call in (called, as_string):
        found = first(tmp_path, {"messages": [USER, call, result, ANSWER], "tools": tools})
        assert found.messages[1] == {"role": "assistant", "tool_calls": [CALL]}
        assert found.messages[2] == result and found.learnt == [1, 3] and found.tools == TOOLS
        assert '"arguments": {"a": 2}' in found.text


def test_parts_of_text(tmp_path):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " 2+2?"}]
    assert first(tmp_path, {"messages": [{"role": "user", "content": parts}, ANSWER]}).messages == [USER, ANSWER]


def test_sharegpt(tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "Four."}]},
        {"conversations": [USER, ANSWER], "system": "Be brief."},
        {"conversations": [{"from": "system", "value": "Be brief."}, USER, {"from": "chatgpt", "value": "Four."}]},
    ]
    found = read(tmp_path, *rows)
    assert "sharegpt (detected)" in found.description
    with_system = [SYSTEM, USER, ANSWER]
    assert [record.messages for record in found.records] == [[USER, ANSWER], with_system, with_system]
    assert [record.learnt for record in found.records] == [[1], [2], [2]]
    assert {record.domain for record in found.records} == {"sharegpt"}


def test_prompt_and_completion_as_messages(tmp_path):
    found = first(tmp_path, {"prompt": [USER, ANSWER, MORE], "completion": [ANSWER]})
    assert found == Conversation("c.jsonl:1", "prompt_completion", [USER, ANSWER, MORE, ANSWER], [3])


def test_preferences_as_messages(tmp_path):
    good, bad = {"role": "assistant", "content": "Four."}, {"role": "assistant", "content": "Five."}
    expected = ChatPreference("c.jsonl:1", "preference", [USER], [good], [bad])
    for row in (
        {"prompt": [USER], "chosen": [good], "rejected": [bad]},
        {"chosen": [USER, good], "rejected": [USER, bad]},
        {"prompt": "What is 2+2?", "chosen": [USER, good], "rejected": [USER, bad]},
    ):
        assert first(tmp_path, row) == expected
    assert [answer.id for answer in expected.answers()] == ["c.jsonl:1#chosen", "c.jsonl:1#rejected"]
    assert [answer.messages[-1] for answer in expected.answers()] == [good, bad]
    several = first(tmp_path, {"prompt": [USER], "chosen": [good, MORE, good], "rejected": [bad]})
    assert [answer.learnt for answer in several.answers()] == [[1, 3], [1]]
    same = read(
        tmp_path, {"prompt": [USER], "chosen": [good], "rejected": [bad]}, {"chosen": [good], "rejected": [good]}
    )
    assert same.empty == ("c.jsonl:2",)


def test_instructions_as_chats_where_that_is_asked_for(tmp_path):
    triple = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    found = first(tmp_path, triple, template="chat")
    assert found.messages == [
        {"role": "user", "content": "Add.\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert first(tmp_path, {"question": "2+2?", "answer": "4"}, template="chat").messages[0]["content"] == "2+2?"
    assert isinstance(first(tmp_path, triple), Example)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "messages is an empty list"),
        ({"messages": "hi"}, "messages is str, not a list of messages"),
        ({"messages": None}, "messages is missing"),
        ({"messages": [USER, "hi"]}, "messages[1] is str, not a message"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role is 'narrator'; known are system"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is None"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content is missing"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content is int"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is no text"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "tools is a string that is no JSON"),
        ({"messages": [USER, ANSWER], "tools": ["x"]}, "tools is not a list of objects"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": "x"}]}, "tool_calls is not a list"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]},
            "arguments that are no JSON",
        ),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "conversations[0].from is 'narrator'; known are"),
        ({"prompt": "text", "completion": [ANSWER]}, "prompt is str, not a list of messages"),
        ({"chosen": [ANSWER], "rejected": "no"}, "rejected is str, not a list of messages"),
        (
            {"prompt": "Other?", "chosen": [USER, ANSWER], "rejected": [USER, MORE]},
            "no message that both answers share",
        ),
        ({"prompt": 7, "chosen": [USER, ANSWER], "rejected": [USER, MORE]}, "prompt is int"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, reason):
    with pytest.raises(RequestError) as caught:
        read(tmp_path, row)
    assert f"c.jsonl, line 1: {reason}" in str(caught.value) or (
        "c.jsonl, line 1: " in str(caught.value) and reason in str(caught.value)
    )
