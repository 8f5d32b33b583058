"""Chats: conversations of several turns, and pairs of answers to one, as OpenAI's `messages` and ShareGPT write them.

A message has a `role` (system, developer, user, assistant, tool) and a `content`, and whatever else a template may read
(`tool_calls`, `name`, `reasoning_content`, …). How messages become text is the tokenizer's matter: see
`hayless.data.templates`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hayless.data.rows import Row, RowError

Message = dict[str, Any]
Turns = Literal["all", "last"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that a tokenizer's template renders; `learnt` are the places of those to learn (the assistant's)."""

    id: str
    domain: str
    messages: list[Message]
    learnt: list[int]
    tools: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """What is said, by whom: for comparing conversations and for counting bytes."""
        return as_text(self.messages)


@dataclass(frozen=True, slots=True)
class ChatPreference:
    """A conversation and two ways to go on, the first of which is preferred."""

    id: str
    domain: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """What is said in the prompt and both answers."""
        return as_text([*self.prompt, *self.chosen, *self.rejected])

    def answers(self) -> tuple[Conversation, Conversation]:
        """The conversation with either answer; the assistant's turns of the answer are learnt."""
        chosen, rejected = (
            Conversation(
                id=f"{self.id}#{name}",
                domain=self.domain,
                messages=[*self.prompt, *answer],
                learnt=[len(self.prompt) + at for at in _assistant(answer)],
                tools=self.tools,
            )
            for name, answer in (("chosen", self.chosen), ("rejected", self.rejected))
        )
        return chosen, rejected


def as_text(messages: Sequence[Message]) -> str:
    """Roles and contents, with calls of tools as JSON."""
    lines = []
    for message in messages:
        calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
        lines.append(f"{message['role']}: {' '.join([message.get('content') or '', *calls])}")
    return "\n".join(lines)


def conversation(row: Row, field: str, domain: str, turns: Turns) -> Conversation | None:
    """The conversation in a field of a row; None where the assistant says nothing that is learnt."""
    messages = messages_of(row.fields.get(field), field)
    if isinstance(system := row.fields.get("system"), str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return _learning(row, domain, messages, 0, turns)


def prompt_and_completion(row: Row, domain: str, turns: Turns) -> Conversation | None:
    """A row whose prompt and completion are messages; only the completion is learnt."""
    prompt, completion = (messages_of(row.fields.get(field), field) for field in ("prompt", "completion"))
    return _learning(row, domain, [*prompt, *completion], len(prompt), turns)


def preference(row: Row, domain: str) -> ChatPreference | None:
    """A row whose chosen and rejected answers are messages, with the prompt apart or as what both begin with."""
    chosen, rejected = (messages_of(row.fields.get(field), field) for field in ("chosen", "rejected"))
    prompt: list[Message] = []
    given = row.fields.get("prompt")
    if isinstance(given, list):
        prompt = messages_of(given, "prompt")
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if isinstance(given, str) and given and not any(message.get("content") == given for message in prompt):
            raise RowError("prompt is text, and no message that both answers share")
        if given is not None and not isinstance(given, str):
            raise RowError(f"prompt is {type(given).__name__}, neither text nor a list of messages")
    if chosen == rejected or not (_assistant(chosen) and _assistant(rejected)):
        return None
    return ChatPreference(row.id, domain, prompt, chosen, rejected, _tools(row))


def is_messages(value: Any) -> bool:
    """Whether a value has the shape of a list of messages rather than of a text."""
    return isinstance(value, list)


def messages_of(value: Any, field: str) -> list[Message]:
    """Messages as a template takes them, from OpenAI's or ShareGPT's keys. RowError for what is none."""
    if value is None:
        raise RowError(f"{field} is missing")
    if not is_messages(value) or not value:
        raise RowError(f"{field} is {'an empty list' if value == [] else type(value).__name__}, not a list of messages")
    return [_message(entry, f"{field}[{number}]") for number, entry in enumerate(value)]


def _message(entry: Any, place: str) -> Message:
    if not isinstance(entry, dict):
        raise RowError(f"{place} is {type(entry).__name__}, not a message with role and content")
    named = "from" if "from" in entry and "role" not in entry else "role"
    held = "value" if "value" in entry and "content" not in entry else "content"
    role = entry.get(named)
    role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        known = ", ".join([*ROLES, *_SHAREGPT] if named == "from" else ROLES)
        raise RowError(f"{place}.{named} is {role!r}; known are {known}")
    message: Message = {"role": role}
    content = _content(entry.get(held), f"{place}.{held}")
    if content is not None:
        message["content"] = content
    for name, more in entry.items():
        if name not in (named, held) and more is not None:
            message[name] = more
    if calls := message.get("tool_calls"):
        message["tool_calls"] = _calls(calls, f"{place}.tool_calls")
    elif content is None:
        raise RowError(f"{place}.{held} is missing")
    return message


def _content(value: Any, place: str) -> str | None:
    """Text, or the text of OpenAI's list of parts."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(f"{place} has a part that is no text")
        value = "".join(map(str, parts))
    if value is not None and not isinstance(value, str):
        raise RowError(f"{place} is {type(value).__name__}, not a string")
    if value is not None:
        check_characters(value, place)
    return value


def check_characters(text: str, place: str) -> None:
    """RowError for a text that cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(f"{place} holds half of a surrogate pair, which is no character") from None


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Calls of tools with their arguments as an object, as templates want them; OpenAI writes them as a string."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{place} is not a list of objects")
    found = []
    for call in calls:
        call = {name: value for name, value in call.items() if value is not None}
        function = call.get("function")
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(function, dict) and isinstance(arguments, str):
            try:
                call["function"] = {**function, "arguments": json.loads(arguments)}
            except ValueError:
                raise RowError(f"{place} has arguments that are no JSON: {arguments[:40]!r}") from None
        found.append(call)
    return found


def _tools(row: Row) -> list[dict[str, Any]] | None:
    """The tools that a row declares: a list of JSON Schemas, or that list as a string."""
    tools: Any = row.fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise RowError(f"tools is a string that is no JSON: {tools[:40]!r}") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("tools is not a list of objects")
    return tools


def _learning(row: Row, domain: str, messages: list[Message], first: int, turns: Turns) -> Conversation | None:
    learnt = [at for at in _assistant(messages) if at >= first]
    learnt = learnt[-1:] if turns == "last" else learnt
    learnt = [at for at in learnt if messages[at].get("weight", 1)]
    for message in messages:
        message.pop("weight", None)
    return Conversation(row.id, domain, messages, learnt, _tools(row)) if learnt else None


def _assistant(messages: Sequence[Message]) -> list[int]:
    """The places of messages in which the assistant says or calls something."""
    return [
        at
        for at, message in enumerate(messages)
        if message["role"] == "assistant" and ((message.get("content") or "").strip() or message.get("tool_calls"))
    ]
