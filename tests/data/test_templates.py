"""Chat templates: the text byte for byte as transformers renders it, and what is learnt of it, by hand.

The templates are written here in the manner of those in the field; each golden text is spelt out. In the goldens
⟦ and ⟧ stand around what is learnt, and are not part of the text.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import NotSupported, RequestError
from hayless.data.chats import Conversation
from hayless.data.examples import instruction
from hayless.data.store import prepare
from hayless.data.templates import PLAIN, ChatTemplate, Refused
from hayless.data.tokenizer import encode, encode_rendered
from tests.data import made

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}
FOUR, MORE = {"role": "assistant", "content": "Four."}, {"role": "user", "content": "Hello!"}
BYE = {"role": "assistant", "content": " Hello! über 🐎\n"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
RESULT = {"role": "tool", "content": "4"}
TOOLS = [{"name": "add"}]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + message.content +"
    " ' [/INST]' }}{% elif message.role == 'assistant' %}{{ ' ' + message.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
THINKS = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
FORGETS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' and"
    " loop.last %}{{ '<think></think>' }}{% endif %}{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ENDS_ONCE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ eos_token }}{% endif %}"
)

GOLDENS = {
    "chatml": (
        CHATML,
        [SYSTEM, USER, FOUR, MORE, BYE],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Four.<|im_end|>⟧\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\n⟦ Hello! über 🐎\n<|im_end|>⟧\n",
    ),
    "marked": (
        MARKED,
        [SYSTEM, USER, FOUR, MORE, BYE],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Four.<|im_end|>⟧\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\n⟦ Hello! über 🐎\n<|im_end|>⟧\n",
    ),
    "inst": (
        INST,
        [USER, FOUR, MORE, BYE, MORE],
        "<s>[INST] What is 2+2? [/INST]⟦ Four. <|im_end|>⟧[INST] Hello! [/INST]⟦ Hello! über 🐎 <|im_end|>⟧"
        "[INST] Hello! [/INST]",
    ),
    "plain": (
        None,
        [SYSTEM, USER, FOUR, MORE, CALL, RESULT, BYE],
        '<s>### Tools:\n{"name": "add"}\n\n### System:\nBe brief.\n\n### Instruction:\nWhat is 2+2?\n\n'
        "### Response:\n⟦Four.<|im_end|>⟧\n\n### Instruction:\nHello!\n\n"
        '### Response:\n⟦{"function": {"name": "add"}}<|im_end|>⟧\n\n### Tool:\n4\n\n'
        "### Response:\n⟦ Hello! über 🐎\n<|im_end|>⟧",
    ),
}


def tokenizer_for(name: str):
    template = GOLDENS[name][0]
    return made.chat_tokenizer(template, bos="<s>" if name in ("inst", "plain") else None)


def conversation(messages, learnt=None):
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    tools = TOOLS if any("tool_calls" in message for message in messages) else None
    return Conversation("chat", "d", list(messages), turns if learnt is None else learnt, tools)


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(name):
    template, messages, golden = GOLDENS[name]
    tokenizer = tokenizer_for(name)
    chat = conversation(messages)
    found = ChatTemplate(tokenizer).rendered(chat)
    text = golden.replace("⟦", "").replace("⟧", "")
    theirs = tokenizer.apply_chat_template(messages, tools=chat.tools, chat_template=template or PLAIN, tokenize=False)
    assert found.text == theirs == text
    marked, at = "", 0
    for start, end in found.spans:
        marked += text[at:start] + "⟦" + text[start:end] + "⟧"
        at = end
    assert marked + text[at:] == golden


@pytest.mark.parametrize("name", GOLDENS)
def test_one_turn_alone(name):
    _, messages, _ = GOLDENS[name]
    every = ChatTemplate(tokenizer_for(name)).rendered(conversation(messages)).spans
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for number, at in enumerate(turns):
        found = ChatTemplate(tokenizer_for(name)).rendered(conversation(messages, [at]))
        assert found.spans == (every[number],)


@pytest.mark.parametrize("level", ["bpe", "char", "unigram"])
@pytest.mark.parametrize("name", GOLDENS)
def test_tokens_are_transformers_own_and_the_mask_is_the_golden_s(tmp_path, name, level):
    template, messages, golden = GOLDENS[name]
    tokenizer = made.chat_tokenizer(template, bos=tokenizer_for(name).bos_token, level=level)
    tools = TOOLS if name == "plain" else None
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    other = {"messages": [{"role": "user", "content": "other"}, FOUR]}
    path = made.write_lines(tmp_path / "c.jsonl", [row, other, other | {"x": 1}])
    prepared = prepare(made.config(path, near_duplicates=False), tokenizer, tmp_path / "stores", kind="sft")
    [found] = [
        store[index]
        for store in (prepared.train, prepared.heldout)
        for index in range(len(store))
        if store.ids[index] == "c.jsonl:1"
    ]
    theirs = tokenizer.apply_chat_template(messages, tools=tools, chat_template=template or PLAIN, return_dict=False)
    assert found.tokens.tolist() == theirs
    said = golden.replace("⟦", "\0").replace("⟧", "\0").split("\0")
    expected = [(number % 2 == 1, part) for number, part in enumerate(said) if part]
    runs: list[tuple[bool, list[int]]] = []
    for token, trained in zip(found.tokens.tolist(), found.trained.tolist(), strict=True):
        if not runs or runs[-1][0] != trained:
            runs.append((trained, []))
        runs[-1][1].append(token)
    if level == "bpe":
        assert [(trained, tokenizer.decode(run)) for trained, run in runs] == expected
    else:
        assert [trained for trained, _ in runs] == [trained for trained, _ in expected]
        assert all((run[-1] == tokenizer.eos_token_id) for trained, run in runs if trained)
    contents = [part.replace("<|im_end|>", "") for trained, part in expected if trained]
    assert found.bytes == sum(len(part.encode()) for part in contents)


def test_the_mask_is_transformers_own_where_the_template_marks(tmp_path):
    tokenizer = tokenizer_for("marked")
    messages = GOLDENS["marked"][1]
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    rows = [{"messages": messages}, {"messages": [USER, FOUR]}]
    path = made.write_lines(tmp_path / "c.jsonl", rows)
    prepared = prepare(made.config(path), tokenizer, tmp_path / "stores", kind="sft")
    stores = (prepared.train, prepared.heldout)
    [found] = [s[index] for s in stores for index in range(len(s)) if s.ids[index] == "c.jsonl:1"]
    assert found.tokens.tolist() == theirs["input_ids"]
    assert found.trained.astype(int).tolist() == theirs["assistant_masks"]


def test_the_plain_template_is_the_one_of_instructions():
    tokenizer = made.tokenizer()
    found = ChatTemplate(tokenizer).rendered(conversation([USER, FOUR]))
    assert found.text == "<|end|>" + instruction("What is 2+2?") + "Four.<|end|>"
    assert [found.text[start:end] for start, end in found.spans] == ["Four.<|end|>"]


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (THINKS, [USER, FOUR], r"starts an answer with '<\|im_start\|>assistant\\n<think>\\n', which a finished"),
        (
            FORGETS,
            [USER, FOUR, MORE, BYE],
            r"rewrites earlier turns: up to message 1 it writes '<think></think>Four.*, but 'Four.* once later",
        ),
        (ENDS_ONCE, [USER, FOUR, MORE, BYE], r"rewrites earlier turns: up to message 1 it writes '<\|im_end\|>'"),
        (INST, [SYSTEM, USER, FOUR], "the chat template refuses it: Only user and assistant roles"),
        (CHATML, [FOUR, USER], "nothing stands before the assistant's first message"),
        ("{{ messages[0].content }}", [USER, FOUR], "leaves out message 1"),
        ("{{ messages[9].content + 1 }}", [USER, FOUR], "the chat template refuses it"),
        (MARKED.replace("{{ message.content + '", "{{ 'x' + '"), [USER, FOUR], "do not hold its text"),
    ],
)
def test_templates_that_rewrite_or_refuse_are_refused_with_what_they_do(template, messages, reason):
    with pytest.raises(Refused, match=reason):
        ChatTemplate(made.chat_tokenizer(template, bos="<s>")).rendered(conversation(messages))


@pytest.mark.parametrize("template", [FORGETS, ENDS_ONCE])
def test_the_last_turn_of_a_template_that_rewrites_can_be_learnt(template):
    found = ChatTemplate(made.chat_tokenizer(template)).rendered(conversation([USER, FOUR, MORE, BYE], [3]))
    [(start, end)] = found.spans
    assert found.text[start:end].endswith("Hello! über 🐎\n" + "<|im_end|>" * (template is FORGETS)) or (
        template is ENDS_ONCE and found.text[start:end] == " Hello! über 🐎\n\n<|im_end|>"
    )


def test_marks_that_are_not_one_a_turn():
    template = MARKED.replace("{{ message.content + '<|im_end|>' }}", "{{ message.content }}{% endgeneration %}")
    template = template.replace(
        "{% endgeneration %}{% endgeneration %}", "{% endgeneration %}{% generation %}x{% endgeneration %}"
    )
    tokenizer = made.chat_tokenizer(template)
    whole = ChatTemplate(tokenizer).rendered(conversation([USER, FOUR, MORE, BYE]))
    assert len(whole.spans) == 4
    with pytest.raises(Refused, match=r"marks \(4\) are not one for each of the assistant's 2 turns"):
        ChatTemplate(tokenizer).rendered(conversation([USER, FOUR, MORE, BYE], [3]))


def test_every_refused_conversation_is_counted_and_named_by_file_and_line(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Q{n}"}, FOUR, MORE, BYE]} for n in range(9)]
    path = made.write_lines(tmp_path / "c.jsonl", [{"messages": [USER, FOUR]}, *rows])
    tokenizer = made.chat_tokenizer(FORGETS)
    with pytest.raises(RequestError, match="9 conversations cannot be learnt from") as caught:
        prepare(made.config(path, near_duplicates=False, heldout=0.01), tokenizer, tmp_path / "stores", kind="sft")
    said = str(caught.value)
    assert "c.jsonl:" in said and "… and 4 more" in said and "turns: last" in said
    assert not list((tmp_path / "stores").glob("tokens-*"))


def test_several_templates_in_one_tokenizer():
    tokenizer = made.chat_tokenizer(None)
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools | tojson }}" + CHATML}
    with_tools = Conversation("c", "d", [USER, FOUR], [1], TOOLS)
    assert ChatTemplate(tokenizer).rendered(with_tools).text.startswith('[{"name": "add"}]<|im_start|>')
    assert ChatTemplate(tokenizer).rendered(conversation([USER, FOUR])).text.startswith("<|im_start|>")


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_whatever_is_said_is_what_is_learnt(contents):
    tokenizer = made.chat_tokenizer(CHATML)
    messages = [m for c in contents for m in (USER, {"role": "assistant", "content": c})]
    found = ChatTemplate(tokenizer).rendered(conversation(messages))
    assert [found.text[start:end] for start, end in found.spans] == [f"{content}<|im_end|>" for content in contents]
    [ids], [spans] = encode_rendered(tokenizer, [found.text])
    assert ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert (spans[1:, 0] >= spans[:-1, 0]).all()


def test_slow_tokenizers_are_refused(monkeypatch):
    tokenizer = made.chat_tokenizer(CHATML)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(NotSupported, match="which characters"):
        encode_rendered(tokenizer, ["x"])


def test_a_conversation_is_learnt_whole_as_plain_text(tmp_path):
    tokenizer = made.chat_tokenizer(INST, bos="<s>")
    path = made.write_lines(tmp_path / "c.jsonl", [{"messages": [USER, FOUR]}, {"messages": [MORE, BYE]}])
    stores = prepare(made.config(path), tokenizer, tmp_path / "stores", kind="lm")
    both = [store[0] for store in (stores.train, stores.heldout)]
    [found] = [one for one in both if one.id == "c.jsonl:1"]
    text = "<s>[INST] What is 2+2? [/INST] Four. <|im_end|>"
    assert tokenizer.decode(found.tokens) == text
    assert found.trained.tolist() == [False] + [True] * (len(found.tokens) - 1)
    assert found.bytes == len("[INST] What is 2+2? [/INST] Four. ")
    plain = made.chat_tokenizer(CHATML, bos="<s>", eos="</s>")
    stores = prepare(made.config(path), plain, tmp_path / "other", kind="lm")
    ids = next(s[0] for s in (stores.train, stores.heldout) if s.ids[0] == "c.jsonl:1").tokens
    assert plain.decode(ids) == "<s>" + ChatTemplate(plain).render([USER, FOUR], None) + "</s>"
    assert encode(plain, ["<s>"])[0] != [plain.bos_token_id]


def test_pairs_of_chats_learn_the_answers_only(tmp_path):
    tokenizer = tokenizer_for("chatml")
    rows = [
        {
            "prompt": [USER, FOUR, {"role": "user", "content": made.prose(20, n)}],
            "chosen": [BYE],
            "rejected": [{"role": "assistant", "content": f"No {n}."}],
        }
        for n in range(4)
    ]
    path = made.write_lines(tmp_path / "p.jsonl", rows)
    config = made.config(path, near_duplicates=False, heldout=0.3)
    store = prepare(config, tokenizer, tmp_path / "stores", kind="preference").train
    assert store.ids[0].endswith("#chosen") and store.ids[1].endswith("#rejected")
    for index in range(len(store)):
        found = store[index]
        answer = BYE["content"] if index % 2 == 0 else f"No {int(found.id.partition('#')[0].partition(':')[2]) - 1}."
        assert tokenizer.decode(found.tokens[found.trained]) == answer + "<|im_end|>"
