"""Examples to tune on: a prompt with an output, and pairs of answers of which one is preferred.

Alpaca triples and question/answer rows are rendered by one fixed template; prompt/completion rows are taken as they
are. Only the output is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hayless.core.errors import NotSupported, RequestError
from hayless.data.config import Format
from hayless.data.documents import Document
from hayless.data.rows import Row

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


Record = Document | Example | Preference


class RowError(ValueError):
    """What is wrong with one row; the reader adds file and line."""


_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen", "rejected"),),
    "alpaca": (("instruction", "output"),),
    "prompt_completion": (("prompt", "completion"), ("question", "answer")),
    "jsonl": (("text",),),
}


def detect(row: Row) -> Format:
    """The format whose fields the row has; RequestError names the fields that were looked for."""
    for chat in ("messages", "conversations"):
        if chat in row.fields:
            raise NotSupported(
                f"{row.file.path} holds chats ({chat}), which are not read yet.",
                hint="Write each as prompt and completion.",
            )
    for name, variants in _FIELDS.items():
        if any(all(field in row.fields for field in fields) for fields in variants):
            return name  # type: ignore[return-value]
    known = "; ".join(
        f"{name}: {' or '.join(' + '.join(fields) for fields in variants)}" for name, variants in _FIELDS.items()
    )
    have = ", ".join(map(str, list(row.fields)[:12])) or "none"
    raise RequestError(
        f"{row.file.path}, line {row.line}: no known format has the fields {have}.", hint=f"Known are {known}."
    )


def parse(row: Row, form: Format, domain: str) -> Record | None:
    """A row of format `form` as a record; None where it has nothing to learn (an empty text or output).

    Raises RowError for a missing field or a wrong type.
    """
    if form == "jsonl":
        text = _text(row.fields, "text")
        return Document(row.id, domain, text) if text.strip() else None
    if form == "preference":
        return _preference(row, domain)
    if form == "alpaca":
        prompt = instruction(_text(row.fields, "instruction"), _text(row.fields, "input", optional=True))
        output = _text(row.fields, "output")
    elif "question" in row.fields and "prompt" not in row.fields:
        prompt, output = instruction(_text(row.fields, "question")), _text(row.fields, "answer")
    else:
        prompt, output = _text(row.fields, "prompt"), _text(row.fields, "completion")
    return Example(row.id, domain, prompt, output) if output.strip() else None


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
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half of a surrogate pair, which is no character") from None
    return value
