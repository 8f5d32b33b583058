"""What is learnt of a row of each format, by hand: ⟦ and ⟧ stand around it, ∎ is the begin and end token."""

from __future__ import annotations

import json

import pytest

from hayless.data.store import prepare
from tests.data import made

CHAT = [
    {"role": "user", "content": "run fast"},
    {"role": "assistant", "content": "I run"},
    {"role": "user", "content": "eat"},
    {"role": "assistant", "content": "no grass"},
]
SHAREGPT = [{"from": "human" if message["role"] == "user" else "gpt", "value": message["content"]} for message in CHAT]
ASKED = "∎### Instruction:\nrun fast\n\n### Response:\n"
BOTH = f"{ASKED}⟦I run∎⟧\n\n### Instruction:\neat\n\n### Response:\n⟦no grass∎⟧"
LAST = f"{ASKED}I run∎\n\n### Instruction:\neat\n\n### Response:\n⟦no grass∎⟧"
HUMAN = "\n\nHuman: run fast\n\nAssistant:"

CASES = {
    "text": ("lm", {"text": "horse grass"}, ["∎⟦horse grass∎⟧"]),
    "alpaca": ("sft", {"instruction": "run fast", "output": "I run"}, [f"{ASKED}⟦I run∎⟧"]),
    "alpaca with input": (
        "sft",
        {"instruction": "run", "input": "fast", "output": "I run"},
        ["∎### Instruction:\nrun\n\n### Input:\nfast\n\n### Response:\n⟦I run∎⟧"],
    ),
    "question and answer": ("sft", {"question": "run fast", "answer": "I run"}, [f"{ASKED}⟦I run∎⟧"]),
    "prompt and completion": ("sft", {"prompt": "run ", "completion": "fast"}, ["∎run ⟦fast∎⟧"]),
    "prompt and completion as messages": ("sft", {"prompt": CHAT[:3], "completion": CHAT[3:]}, [LAST]),
    "messages": ("sft", {"messages": CHAT}, [BOTH]),
    "sharegpt": ("sft", {"conversations": SHAREGPT}, [BOTH]),
    "preference": (
        "preference",
        {"prompt": "run: ", "chosen": "fast", "rejected": "slow"},
        ["∎run: ⟦fast∎⟧", "∎run: ⟦slow∎⟧"],
    ),
    "hh-rlhf": (
        "preference",
        {"chosen": f"{HUMAN} I run", "rejected": f"{HUMAN} no"},
        [f"∎{HUMAN}⟦ I run∎⟧", f"∎{HUMAN}⟦ no∎⟧"],
    ),
    "preference as messages": (
        "preference",
        {"chosen": CHAT, "rejected": [*CHAT[:3], {"role": "assistant", "content": "all grass"}]},
        [LAST, LAST.replace("no grass", "all grass")],
    ),
}


def marked(tokenizer, document) -> str:
    found, inside = "", False
    for token, trained in zip(document.tokens.tolist(), document.trained.tolist(), strict=True):
        found += "⟦" * (trained and not inside) + "⟧" * (inside and not trained)
        found += tokenizer.decode([token]).replace("<|end|>", "∎")
        inside = trained
    return found + "⟧" * inside


@pytest.mark.parametrize("name", CASES)
def test_what_is_learnt(tmp_path, name):
    kind, row, expected = CASES[name]
    other = json.loads(json.dumps(row).replace("run", "stone barn oats").replace("horse", "river"))
    path = made.write_lines(tmp_path / "rows.jsonl", [row, other])
    tokenizer = made.tokenizer()
    prepared = prepare(made.config(path, near_duplicates=False), tokenizer, tmp_path / "stores", kind=kind)
    found = [
        marked(tokenizer, store[index])
        for store in (prepared.train, prepared.heldout)
        for index in range(len(store))
        if store.ids[index].startswith("rows.jsonl:1")
    ]
    assert found == expected
