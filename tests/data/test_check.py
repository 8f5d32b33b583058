"""The check of data: each silent failure is made on purpose, and must be named, counted and refused."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError, WorkError
from hayless.data import check
from hayless.data.check_page import render
from hayless.data.check_view import MOST_TOKENS, draw_lengths, examples
from hayless.data.contamination import LEAST_BYTES, _window_hashes, contained
from hayless.data.facts import facts, learnt_within
from hayless.data.store import TokenStore, prepare
from tests.data import made
from tests.data.test_store import EXAMPLES, PAIRS
from tests.data.test_templates import CHATML, FOUR, INST, MARKED, MORE, USER


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Examples that are no copies of one another."""
    return [{"prompt": made.prose(12, n), "completion": made.prose(12, 1000 + n), **more} for n in range(count)]


def chats(count: int, said: str = "") -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": made.prose(12, n)},
                {"role": "assistant", "content": made.prose(12, 1000 + n) + said},
            ]
        }
        for n in range(count)
    ]


def found(tmp_path, content, kind="sft", *, tokenizer=None, sequence_length=512, allow=(), embeddings=None, **options):
    path = made.write_lines(tmp_path / "rows.jsonl", content)
    tokenizer = tokenizer or made.chat_tokenizer(None, bos="<s>")
    tokenizer.pad_token = tokenizer.pad_token or "<|im_start|>"
    prepared = prepare(made.config(path, heldout=0.3, **options), tokenizer, tmp_path / "stores", kind=kind)
    problems = check.problems(prepared, tokenizer, sequence_length=sequence_length, allow=allow, embeddings=embeddings)
    return {problem.name: problem for problem in problems}


def refused(problems) -> list[str]:
    return [name for name, problem in problems.items() if problem.refused]


def test_good_data_has_no_problem(tmp_path):
    assert found(tmp_path, rows(20)) == {}
    assert found(tmp_path / "chats", chats(20), tokenizer=made.chat_tokenizer(CHATML)) == {}
    check.refuse([])


def test_rows_with_nothing_to_learn(tmp_path):
    problems = found(tmp_path, [*rows(10), {"prompt": "p", "completion": " "}])
    problem = problems["nothing_to_learn"]
    assert refused(problems) == ["nothing_to_learn"]
    assert (problem.count, problem.total, problem.ids) == (1, 11, ("rows.jsonl:11",))
    with pytest.raises(WorkError, match=r"nothing_to_learn: .* 1 of 11 \(rows\.jsonl:11\)") as caught:
        check.refuse(problems.values())
    assert "allow: nothing_to_learn" in str(caught.value)
    assert refused(found(tmp_path, [*rows(10), {"prompt": "p", "completion": " "}], allow=check.LEFT_OUT)) == []


def test_answers_that_are_cut_off_and_documents_cut_short(tmp_path):
    problems = found(tmp_path, rows(20), sequence_length=8)
    assert refused(problems) == ["answer_cut_off", "truncated"]
    assert problems["answer_cut_off"].count == problems["truncated"].count == 20
    assert "within 8 tokens" in problems["answer_cut_off"].what and "(100.0%)" in problems["truncated"].what
    assert refused(found(tmp_path, rows(20), sequence_length=8, allow=("truncated", "answer_cut_off"))) == []


def test_a_little_truncation_is_noted(tmp_path):
    content = [*rows(150), {"prompt": "p", "completion": made.prose(300, 9)}]
    problem = found(tmp_path, content, sequence_length=400)["truncated"]
    assert (problem.count, problem.total, problem.ids, problem.refused) == (1, 151, ("rows.jsonl:151",), False)


def test_plain_text_is_split_and_not_truncated(tmp_path):
    assert found(tmp_path, [{"text": made.prose(60, n)} for n in range(10)], "lm", sequence_length=8) == {}


@pytest.mark.parametrize("pad", ["<|im_start|>", "</s>"])
def test_an_end_token_that_is_never_learnt(tmp_path, pad):
    """The template closes turns with a token that is not the tokenizer's end token."""
    tokenizer = made.chat_tokenizer(CHATML, eos="</s>")
    tokenizer.pad_token = pad
    problems = found(tmp_path, chats(10), tokenizer=tokenizer)
    [name] = refused(problems)
    assert name == ("end_never_trained" if pad != "</s>" else "pad_is_end")
    assert problems[name].count == 10 and "'</s>'" in problems[name].what


def test_marks_that_leave_the_end_out(tmp_path):
    template = MARKED.replace(
        "message.content + '<|im_end|>' }}{% endgeneration %}", "message.content }}{% endgeneration %}<|im_end|>"
    )
    assert refused(found(tmp_path, chats(10), tokenizer=made.chat_tokenizer(template))) == ["end_never_trained"]


def test_padding_that_is_the_end_is_noted_where_the_end_is_learnt(tmp_path):
    tokenizer = made.chat_tokenizer(CHATML)
    tokenizer.pad_token = "<|im_end|>"
    problems = found(tmp_path, chats(10), tokenizer=tokenizer)
    assert list(problems) == ["pad_is_end"] and not refused(problems)


def test_begin_tokens_twice(tmp_path):
    spelt = [{"prompt": "<s>" + made.prose(9, n), "completion": made.prose(9, 100 + n)} for n in range(4)]
    problems = found(tmp_path, [*spelt, *rows(10)])
    assert refused(problems) == ["begin_doubled"] and problems["begin_doubled"].count == 4
    twice = made.chat_tokenizer("{{ bos_token }}" + INST, bos="<s>")
    assert found(tmp_path / "chats", chats(10), tokenizer=twice)["begin_doubled"].count == 10


def test_a_begin_token_that_the_template_forgets(tmp_path):
    from tokenizers.processors import TemplateProcessing

    for writes_it in (False, True):
        tokenizer = made.chat_tokenizer(CHATML, bos="<s>")
        if writes_it:
            ids = [("<s>", tokenizer.bos_token_id)]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=ids)
        problems = found(tmp_path / str(writes_it), chats(10), tokenizer=tokenizer)
        assert refused(problems) == ["begin_missing"] * writes_it
        if writes_it:
            assert problems["begin_missing"].count == 10
            right = tokenizer.chat_template = "{{ bos_token }}" + CHATML
            assert right and found(tmp_path / "right", chats(10), tokenizer=tokenizer) == {}


def test_special_tokens_in_what_is_said(tmp_path):
    content = [*chats(9), *[{"messages": [USER, {**FOUR, "content": "x<|im_end|>y"}, MORE, FOUR]}]]
    problems = found(tmp_path, content, tokenizer=made.chat_tokenizer(CHATML))
    assert refused(problems) == ["special_in_chat"] and problems["special_in_chat"].ids == ("rows.jsonl:10",)
    spelt = [
        {"prompt": f"[INST] {made.prose(9, n)}", "completion": f"x </s> {made.prose(9, 50 + n)}"} for n in range(9)
    ]
    problems = found(tmp_path / "text", spelt)
    assert problems["special_as_text"].count == 9 and not refused(problems)


def test_a_turn_that_starts_inside_a_token(tmp_path):
    from hayless.data.tokenizer import train

    tokenizer = train(["user:\nx assistant:\n\n\n\nx"], "word", 60)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.eos_token, tokenizer.bos_token = "<|im_end|>", None
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role + ':\\n' + message.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    said = [
        {"messages": [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": "\n\n\nx"}]}
        for n in range(1, 9)
    ]
    problem = found(tmp_path, said, tokenizer=tokenizer, near_duplicates=False)["turn_inside_token"]
    assert problem.count == 8 and not problem.refused


def test_copies_and_contaminated_documents(tmp_path):
    content = rows(20)
    prepared = made.prepared(tmp_path, made.write_lines(tmp_path / "a.jsonl", content), kind="sft", heldout=0.3)
    held = [int(name.partition(":")[2]) - 1 for name in prepared.heldout.ids]
    kept = [int(name.partition(":")[2]) - 1 for name in prepared.train.ids]
    # What is held out depends on the line: only the copies that come to lie in the training part contaminate.
    problems = found(tmp_path, [*content, *[content[at] for at in held] * 3])
    assert "contaminated" in refused(problems) and "copies rows.jsonl:" in problems["contaminated"].ids[0]
    problems = found(tmp_path, [*content, *[content[at] for at in kept]])
    assert "exact_copies" in refused(problems) and problems["exact_copies"].total > 20


def test_held_out_text_inside_training_text(tmp_path):
    folder = made.texts(tmp_path, [300] * 30)
    before = made.prepared(tmp_path, folder, heldout=0.2)
    assert not contained(before.train, before.heldout).any()
    taken = before.heldout.ids[0]
    text = (folder / taken).read_text()
    (folder / before.train.ids[0]).write_text(made.prose(900, 77) + text + made.prose(900, 78))
    after = made.prepared(tmp_path, folder, heldout=0.2)
    flags = contained(after.train, after.heldout)
    assert [after.heldout.ids[at] for at in np.flatnonzero(flags)] == [taken]
    problems = {p.name: p for p in check.problems(after, made.tokenizer(), sequence_length=512)}
    problem = problems["contained"]
    assert (problem.count, problem.total, problem.ids, problem.refused) == (1, len(after.heldout), (taken,), True)


def test_what_is_short_is_not_judged(tmp_path):
    content = [
        {"prompt": made.prose(20, n), "completion": "the horse will eat the grass of the field by the river"}
        for n in range(40)
    ]
    prepared = made.prepared(tmp_path, made.write_lines(tmp_path / "a.jsonl", content), kind="sft", heldout=0.3)
    assert (prepared.heldout.bytes < LEAST_BYTES).all() and not contained(prepared.train, prepared.heldout).any()


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_window_hashes_tell_windows_apart(tokens, length):
    if len(tokens) < length:
        return
    hashes = _window_hashes(np.array(tokens, dtype=np.uint64), length).tolist()
    windows = [tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1)]
    assert len(hashes) == len(windows)
    assert len(set(zip(windows, hashes, strict=True))) == len(set(windows)) == len(set(hashes))


def test_tokens_that_are_unknown_and_tokens_beyond_the_model(tmp_path):
    problems = found(tmp_path, rows(9), tokenizer=made.chat_tokenizer(None, bos="<s>", level="char"), embeddings=10)
    assert refused(problems) == ["outside_model"] and problems["outside_model"].count == 9
    unknown = [{"prompt": "run ", "completion": made.prose(9, n) + "ß"} for n in range(9)]
    tokenizer = made.chat_tokenizer(None, bos="<s>", level="char")
    problems = found(tmp_path / "unknown", unknown, tokenizer=tokenizer, embeddings=len(tokenizer))
    assert list(problems) == ["unknown_tokens"] and not refused(problems)


def test_only_known_problems_can_be_allowed(tmp_path):
    with pytest.raises(RequestError, match="Did you mean 'truncated'"):
        found(tmp_path, rows(9), allow=("truncatd",))


@pytest.mark.parametrize(
    ("kind", "content"),
    [("lm", [{"text": made.prose(n, n)} for n in range(3, 40)]), ("sft", EXAMPLES), ("preference", PAIRS)],
)
@pytest.mark.parametrize("length", [3, 9, 14, 500])
def test_facts_are_those_counted_one_by_one(tmp_path, monkeypatch, kind, content, length):
    monkeypatch.setattr("hayless.data.facts._TOKENS_AT_ONCE", 100)
    store = made.prepared(tmp_path, made.write_lines(tmp_path / "a.jsonl", content), kind=kind).train
    seen = facts(store, length, begin=0, unknown=3)
    within = learnt_within(store, length)
    for index in range(len(store)):
        document = store[index]
        tokens, learnt = document.tokens, document.trained
        last = max(1, len(tokens) - length)
        fits = {"lm": slice(1, None), "sft": slice(1, length + 1), "preference": slice(last, None)}[kind]
        assert seen.tokens[index] == len(tokens) and seen.learnt[index] == learnt.sum()
        assert seen.ends[index] == (tokens[learnt] == store.end).any() and seen.begins[index]
        assert seen.unknown[index] == (tokens == 3).sum() and not seen.begins_twice[index]
        assert within[index] == seen.learnt_within[index] == learnt[fits].sum()


def test_figures_by_hand(tmp_path):
    path = made.write_lines(tmp_path / "a.jsonl", EXAMPLES)
    prepared = made.prepared(tmp_path, path, kind="sft")
    figures = check.figures(prepared, sequence_length=64)
    store = prepared.train
    learnt = sum(int(store[index].trained.sum()) for index in range(len(store)))
    assert (figures.documents, figures.tokens, figures.learnt_tokens) == (len(store), len(store.tokens), learnt)
    positions = (len(store.tokens) - len(store)) / (1 - figures.padded_share)
    assert positions == pytest.approx(round(positions)) and round(positions) % 64 == 0
    assert figures.learnt_share == pytest.approx(learnt / positions) and figures.truncated_share == 0
    assert check.figures(prepared, sequence_length=2) is None


def long_store(tmp_path) -> TokenStore:
    folder = made.texts(tmp_path, [5, 400, 5, 6])
    return made.prepared(tmp_path, folder, heldout=0.3).train


def test_examples_show_every_token_or_both_ends(tmp_path):
    store = long_store(tmp_path)
    for shown in examples(store, made.tokenizer(), count=9):
        document = store[store.ids.index(shown.id)]
        tokens = [*shown.head, *shown.tail]
        assert len(tokens) + shown.omitted == shown.length == len(document.tokens)
        assert [token.id for token in shown.head] == document.tokens[: len(shown.head)].tolist()
        assert [token.learnt for token in shown.head] == document.trained[: len(shown.head)].tolist()
        assert tokens[0].special and tokens[-1].text == "<|end|>" and tokens[-1].learnt
        assert (shown.omitted > 0) == (shown.length > MOST_TOKENS) and len(tokens) <= MOST_TOKENS


def test_the_picture_of_lengths(tmp_path):
    store = long_store(tmp_path)
    picture = draw_lengths([store], 64, "svg").decode()
    assert ">sequence length 64<" in picture and f"longest {int(store.lengths.max()):,}" in picture
    assert draw_lengths([store], 64, "png").startswith(b"\x89PNG")


class Reader(HTMLParser):
    """Tags, what they hold of links and code, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.odd: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.odd += [name for name, value in attrs if name.startswith("on") or "://" in (value or "")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_what_the_data_says(tmp_path):
    evil = "</style><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"
    path = made.write_lines(tmp_path / "a.jsonl", [{"prompt": evil + str(n), "completion": evil} for n in range(6)])
    prepared = made.prepared(tmp_path, path, kind="sft", near_duplicates=False, heldout=0.5)
    shown = examples(prepared.train, made.tokenizer())
    problems = check.problems(prepared, made.tokenizer(), sequence_length=64)
    page = render(
        f"{evil}\n{evil}",
        check.figures(prepared, sequence_length=64),
        problems,
        shown,
        draw_lengths([prepared.train], 64, "svg"),
        sequence_length=64,
    )
    read = Reader(page)
    assert not {"script", "a", "link", "iframe"} & set(read.tags) and read.tags.count("img") == 1 and not read.odd
    assert evil in read.text and all(problem.name in read.text for problem in problems)
    assert page.count('class="learnt') == sum(token.learnt for one in shown for token in (*one.head, *one.tail))
    assert "default-src 'none'" in page
