"""Rows of every format as records: examples to tune on, pairs of answers of which one is preferred, texts, chats.

Alpaca triples and question/answer rows are rendered by one fixed template, or become chats where that is asked for;
prompt/completion rows are taken as they are. Only the output is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hayless.core.errors import RequestError
from hayless.data import chats
from hayless.data.chats import ChatPreference, Conversation
from hayless.data.config import Format, Source
from hayless.data.documents import Document
from hayless.data.rows import Row, RowError

INSTRUCTION = "### Instruction:\n{instruction}\n\n### Response:\n"
INSTRUCTION_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_LAST_TURN = ("\n\nAssistant:", "\nAssistant:", "### Response:\n")


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered prompt and the output to learn."""

    id: str
    domain: str
    prompt: str
    output: str

    @property
    def text(self) -> str:
        """Prompt and output together."""
        return self.prompt + self.output


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers, the first of which is preferred."""

    id: str
    domain: str
    prompt: str
    chosen: str
    rejected: str

    @property
    def text(self) -> str:
        """Prompt and both answers together."""
        return f"{self.prompt}{self.chosen}\n{self.rejected}"


Record = Document | Example | Conversation | Preference | ChatPreference

_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "preference": (("chosen", "rejected"),),
    "alpaca": (("instruction", "output"),),
    "prompt_completion": (("prompt", "completion"), ("question", "answer")),
    "jsonl": (("text",),),
}


def detect(row: Row) -> Format:
    """The format whose fields the row has; RequestError names the fields that were looked for."""
    for name, variants in _FIELDS.items():
        if any(all(field in row.fields for field in fields) for fields in variants):
            return name  # type: ignore[return-value]
    known = "; ".join(
        f"{name}: {' or '.join(' + '.join(fields) for fields in variants)}" for name, variants in _FIELDS.items()
    )
    have = ", ".join(map(str, list(row.fields)[:12])) or "none"
    raise RequestError(f"{row.file.at(row.line)}: no known format has the fields {have}.", hint=f"Known are {known}.")


def parse(row: Row, form: Format, source: Source) -> Record | None:
    """A row of format `form` as a record; None where it has nothing to learn (an empty text or output).

    Raises RowError for a missing field or a wrong type.
    """
    domain = source.domain or (row.file.folder if form == "jsonl" else form)
    if form == "jsonl":
        text = _text(row.fields, "text")
        return Document(row.id, domain, text) if text.strip() else None
    if form in ("messages", "sharegpt"):
        field = "conversations" if "conversations" in row.fields else "messages"
        return chats.conversation(row, field, domain, source.turns)
    if form == "preference":
        return chats.preference(row, domain) if isinstance(row.fields.get("chosen"), list) else _preference(row, domain)
    if form == "alpaca":
        question = _text(row.fields, "instruction"), _text(row.fields, "input", optional=True)
        return _answered(row, domain, question, _text(row.fields, "output"), source)
    if "question" in row.fields and "prompt" not in row.fields:
        return _answered(row, domain, (_text(row.fields, "question"), ""), _text(row.fields, "answer"), source)
    if isinstance(row.fields.get("completion"), list):
        return chats.prompt_and_completion(row, domain, source.turns)
    prompt, output = _text(row.fields, "prompt"), _text(row.fields, "completion")
    return Example(row.id, domain, prompt, output) if output.strip() else None


def _answered(row: Row, domain: str, question: tuple[str, str], output: str, source: Source) -> Record | None:
    """An instruction, what it is about (or nothing), and the output, in the template that the source asks for."""
    if not output.strip():
        return None
    if source.template == "plain":
        return Example(row.id, domain, instruction(*question), output)
    asked = "\n\n".join(part for part in question if part.strip())
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    return Conversation(row.id, domain, messages, learnt=[1])


def instruction(instruction: str, input: str = "") -> str:
    """The prompt for an instruction; generate from this text with a model tuned on such examples."""
    template = INSTRUCTION_WITH_INPUT if input.strip() else INSTRUCTION
    return template.format(instruction=instruction, input=input)


def as_document(example: Example) -> Document:
    """An example as plain text, for training on all of it."""
    return Document(example.id, example.domain, example.text)


def _preference(row: Row, domain: str) -> Preference | None:
    prompt = _text(row.fields, "prompt", optional=True)
    chosen, rejected = _text(row.fields, "chosen"), _text(row.fields, "rejected")
    if not prompt:
        shared = _shared_dialogue(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if chosen == rejected or not (chosen.strip() and rejected.strip()):
        return None
    return Preference(row.id, domain, prompt, chosen, rejected)


def _shared_dialogue(chosen: str, rejected: str) -> int:
    """Length of what two whole dialogues share, up to and with the mark of the last shared turn of the assistant."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    for mark in _LAST_TURN:
        at = chosen.rfind(mark, 0, shared)
        if at >= 0 and at + len(mark) <= shared:
            return at + len(mark)
    return 0


def _text(fields: dict[str, Any], name: str, *, optional: bool = False) -> str:
    value = fields.get(name)
    if value is None and optional:
        return ""
    if value is None:
        raise RowError(f"{name} is missing" if name not in fields else f"{name} is null")
    if not isinstance(value, str):
        raise RowError(f"{name} is {type(value).__name__}, not a string")
    chats.check_characters(value, name)
    return value
